"""A launch on a device: what the CUDA and the Triton engine share."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..inputs import DeviceInputs, StepInputs
from ..rectification import Coefficients
from .base import Graph
from .buckets import Bucket, Table
from .graphs import watch_capture


def _current_stream(device: torch.device) -> Any:
    """The caller's stream; None for the CPU."""
    if device.type == "cpu":
        return None
    return torch.get_device_module(device).current_stream(device)


def as_current(device: torch.device) -> AbstractContextManager[object]:
    """A device as the current one; torch's guard, which leaves no context elsewhere."""
    if device.type == "cpu":
        return nullcontext()
    guard: AbstractContextManager[object] = torch.get_device_module(device).device(device)
    return guard


class DeviceLaunch:
    """A bucket stepped by one launch of a kernel on the caller's stream.

    Args:
        bucket: The parameters.
        table_type: TensorTable of the extension or its likeness.
        chunk: Scalars that one block of the kernel updates.
        workspace_bytes: Device memory for tables that are too large for a kernel's arguments.
    """

    def __init__(self, bucket: Bucket, table_type: Any, chunk: int, workspace_bytes: int) -> None:
        self._device = bucket.params[0].device
        self._counts_on_device = bucket.setup.counts_on_device
        self._table = Table(bucket, table_type, chunk, self._counts_on_device)
        self._workspace_bytes = workspace_bytes
        self._of_graphs: list[tuple[Graph, Tensor]] = []  # workspaces that replays use
        self._make_workspace()
        self._due: list[Coefficients] = []
        self._inputs: StepInputs | None = None  # None: nothing has a gradient

    def _make_workspace(self) -> None:
        size = self._workspace_bytes
        self._workspace = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._stream = _current_stream(self._device)
        self._graph: Graph | None = None  # whose the workspace has become
        with as_current(self._device):
            self._forget_uploads()

    def refresh(self, inputs: StepInputs) -> bool:
        """See Launch.refresh."""
        self._inputs = None
        counts = self._table.refresh(inputs.eps)
        if counts is None:
            return False
        if self._counts_on_device:
            inputs.check_capturable(self._device)
            if self._table.rows.ranges > 0:
                self._inputs = inputs
        elif counts:
            self._due = [inputs.coefficients(count) for count in counts]
            self._inputs = inputs
        return True

    def run(self) -> Graph | None:
        """See Launch.run."""
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            return None
        if self._graph is not None:
            # What the graph uploads there is there only once it is replayed, and then at any time.
            held = [*self._of_graphs, (self._graph, self._workspace)]
            self._of_graphs = [(graph, workspace) for graph, workspace in held if graph.is_alive]
            self._make_workspace()
        stream = _current_stream(self._device)
        if stream != self._stream:
            # The allocator must not hand the workspace on while that stream still reads it.
            self._workspace.record_stream(stream)
            self._stream = stream
        if self._counts_on_device:
            self._graph = watch_capture(stream)
        self._table.announce_writes()
        with as_current(self._device):
            if self._counts_on_device:
                self._counting_step(stream, inputs.on_device(self._device))
            else:
                self._step(stream, self._due)
        self._table.finish()
        return self._graph

    def _forget_uploads(self) -> None:
        """Take nothing to be in the workspace: it is a new one."""
        raise NotImplementedError

    def _step(self, stream: Any, due: list[Coefficients]) -> None:
        """Launch a step that the host counts.

        Args:
            stream: The caller's.
            due: Coefficients of every step count that the table's refresh() returned.
        """
        raise NotImplementedError

    def _counting_step(self, stream: Any, inputs: DeviceInputs) -> None:
        """Launch a step that the device counts.

        Args:
            stream: The caller's.
            inputs: What it is computed from.
        """
        raise NotImplementedError
