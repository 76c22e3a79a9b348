"""The CUDA engine: csrc/cuda through the extension."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..inputs import StepInputs
from ..rectification import Coefficients
from ..tensors import has_own_memory
from . import extension
from .base import Backend, Graph, Launch, Setup, State
from .native import Bucket, Table, buckets

_C: Any = None if extension.why_not else extension._C


def architectures() -> str | None:
    """CUDA architectures that this build has code for, as CMake names them; None without CUDA."""
    return getattr(_C, "cuda_architectures", None)


def _current_stream(device: torch.device) -> int:
    """Handle of the caller's stream."""
    return torch.cuda.current_stream(device).cuda_stream


def _current_device(device: torch.device) -> AbstractContextManager[object]:
    """The parameters' device as the current one; torch's, which leaves no context elsewhere."""
    return torch.cuda.device(device)


class CudaLaunch:
    """A bucket stepped by one launch of the CUDA kernel on the caller's stream."""

    def __init__(self, bucket: Bucket) -> None:
        self._device = bucket.params[0].device
        self._counts_on_device = bucket.setup.counts_on_device
        self._table = Table(bucket, _C, _C.cuda_chunk, self._counts_on_device)
        self._kernels = _C.CudaLaunch()
        # Where the kernel finds tables that are too large for its arguments.
        size = _C.cuda_workspace_bytes(len(bucket))
        self._workspace = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._stream = _current_stream(self._device)
        self._due: list[Coefficients] = []
        self._inputs: StepInputs | None = None  # None: nothing has a gradient

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
        stream = _current_stream(self._device)
        if stream != self._stream:
            # The allocator must not hand the workspace on while that stream still reads it.
            self._workspace.record_stream(torch.cuda.current_stream(self._device))
            self._stream = stream
        self._table.announce_writes()
        graph: Graph | None = None
        with _current_device(self._device):
            if self._counts_on_device:
                graph = self._kernels.counting_step(
                    self._table.rows, self._workspace, stream, *inputs.on_device(self._device)
                )
            else:
                self._kernels.step(self._table.rows, self._workspace, stream, self._due)
        self._table.write_back()
        return graph


def _launches(params: Sequence[Tensor], states: Sequence[State], setup: Setup) -> list[Launch]:
    return [CudaLaunch(bucket) for bucket in buckets(params, states, setup)]


def _unavailable() -> str | None:
    if extension.why_not is not None:
        return extension.why_not
    if architectures() is None:
        return "the extension was built without CUDA, because no nvcc was found or wanted"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    reason: str | None = _C.cuda_missing()
    return reason


@cache
def _unusable(device: int) -> str | None:
    reason: str | None = None if architectures() is None else _C.cuda_unusable(device)
    return reason


def _refuses(param: Tensor) -> str | None:
    if param.device.type != "cuda":
        return f"it is on {param.device}, not on a CUDA device"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return _unusable(param.device.index)


BACKEND: Backend = Backend(
    name="cuda",
    unavailable=cache(_unavailable),
    refuses=_refuses,
    launches=_launches,
    counts_on_device=True,
)
