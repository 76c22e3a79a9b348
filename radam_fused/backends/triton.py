"""The Triton backend: runs the kernels of triton_kernels."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..extension import unavailable_reason
from ..state import STATE, Role
from ..tensors import has_own_memory
from .interface import Kind, Reducer
from .launches import TableLaunch, Workspace, as_current, current_stream
from .step import Step

_OLDEST = (3, 6)


class TritonReducer:
    """See Reducer."""

    def fold(self, numbers: Tensor) -> Tensor:
        """See Reducer.fold."""
        with as_current(numbers.device):
            make = Workspace(numbers.device).make
            total: Tensor = _sums().fold(numbers, lambda count: make(8 * count).view(torch.float64))
        return total

    def clip(
        self,
        square_sum: Tensor,
        grad_scale: Tensor | None,
        failed: Tensor | None,
        options: tuple[float, float, bool],
        state: Tensor,
    ) -> None:
        """See Reducer.clip."""
        with as_current(state.device):
            _sums().clip(square_sum, grad_scale, failed, options, state)


class TritonLaunch(TableLaunch):
    """Updates parameters with one run of the Triton step kernel on the current stream.

    Args:
        kind: The common properties of its parameters.

    Raises:
        RuntimeError: A kernel cannot be compiled for the device.
    """

    reducer: Reducer | None = TritonReducer()
    is_atomic = False  # Python counts the step after it has run the kernels

    def __init__(self, kind: Kind) -> None:
        kernels = _kernels()
        super().__init__(kind, kernels.CHUNK)
        counter = kind.step if kind.counts_on_device else None
        dtypes = kind.param, kind.grad, kind.moment
        amsgrad = "max_exp_avg_sq" in kind.state
        stored = _master(kind.state), kind.draws, kind.has_gaps
        with as_current(kind.device):
            self._kernels = kernels.CompiledKernels(kind.device, dtypes, amsgrad, counter, *stored)
        self._workspace = Workspace(kind.device)
        self._scratch = Workspace(kind.device)
        self._prepared: Any = None  # the upload of a step whose norm has been taken
        self._clipping: Tensor | None = None
        self._upload: Any = None  # knows the content of the workspace
        self._staging: Tensor | None = None  # for the next capture
        self._graph_staging: list[Tensor] = []  # read by replays of captured graphs

    def sum_squares(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """See Launch.sum_squares."""
        table = self.table
        segments = table.segments
        if not segments:
            return
        self._begin(len(first_of_group))
        rows, sizes, numbers = table.fold_levels(first_of_group)
        with as_current(self.kind.device):
            upload = self._prepared = self._upload_of_step(len(rows))
            scratch = self._scratch_of_step(numbers)
            levels = rows, sizes
            self._kernels.sum_squares(upload, segments, table.chunk_index, levels, scratch, sums)

    def compute(self, step: Step) -> None:
        """See Launch.compute."""
        super().compute(step)
        self._clipping = self._clip(step)

    def run(self) -> None:
        """See Launch.run."""
        table = self.table
        if not table.is_active():
            return
        with as_current(self.kind.device):
            rows, tracked = b"", None
            if self._tracked is not None:
                first_of_group, sums = self._tracked
                rows, sizes, numbers = table.fold_levels(first_of_group)
                tracked = sizes, self._scratch_of_step(numbers), sums
            upload = self._prepared or self._upload_of_step(len(rows))
            self._prepared = self._tracked = None
            host_table = table.options if self.kind.counts_on_device else table.coefficients
            table.start()
            if segments := table.segments:
                if rows:
                    upload.copy_segments(segments, rows, table.chunk_index)
                how = host_table, table.chunk_index, self._clipping, tracked, table.draws
                self._kernels.run(upload, segments, *how)
            self._clipping = None
            table.finish()

    def _upload_of_step(self, more: int) -> Any:
        """The tables of the step, with memory for some more bytes."""
        size = self._kernels.workspace_bytes(self._size + more)
        return self._captured_upload(size) if self._capturing else self._kept_upload(size)

    def _scratch_of_step(self, numbers: int) -> Tensor:
        """Memory for float64 numbers."""
        if self._capturing:
            return self._scratch.make(8 * numbers)
        scratch, _ = self._scratch.get(8 * numbers, current_stream(self.kind.device))
        return scratch[: 8 * numbers]

    def _kept_upload(self, size: int) -> Any:
        workspace, is_new = self._workspace.get(size, current_stream(self.kind.device))
        if is_new:
            self._upload = self._kernels.upload(workspace)
        if self.kind.counts_on_device and (self._staging is None or self._staging.numel() < size):
            pinned = self.kind.device.type != "cpu"
            self._staging = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        return self._upload

    def _captured_upload(self, size: int) -> Any:
        """An upload in the graph's memory pool, with staging memory from before the capture."""
        if self._staging is None or self._staging.numel() < size:
            raise RuntimeError(
                "backend='triton' cannot capture this step: it has no pinned memory for it. Run "
                "one step without capture before each capture"
            )
        self._graph_staging.append(self._staging)
        self.is_replayed = True
        self._staging = None
        return self._kernels.upload(self._workspace.make(size), self._graph_staging[-1])


def _master(state: Sequence[str]) -> str | None:
    """The format of the masters, from the names of the state tensors."""
    found = (
        field.values[0] for field in STATE if field.role is Role.MASTER and field.name in state
    )
    return next(found, None)


def version() -> str | None:
    """The version of Triton; None if Triton is missing or broken."""
    try:
        import triton

        found: str = triton.__version__
    except Exception:  # a broken installation can raise anything
        return None
    return found


@cache
def _kernels() -> Any:
    """The module triton_kernels.compiled. Raises what its import raises."""
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ImportError(f"triton {triton.__version__} is too old, expected {oldest} or later")
    from ..triton_kernels import compiled

    return compiled


def _sums() -> Any:
    """The module triton_kernels.sums."""
    from ..triton_kernels import sums

    return sums


def is_interpreted() -> bool:
    """Whether Triton interprets the kernels in Python, for debugging, on CPU tensors."""
    # The environment is checked first, because the import of triton is slow.
    return bool(os.environ.get("TRITON_INTERPRET")) and _import_error() is None and _interprets()


def _interprets() -> bool:
    interprets: bool = _kernels().is_interpreted
    return interprets


@cache
def _import_error() -> str | None:
    try:
        _kernels()
    except Exception as error:  # a broken installation can raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "triton is not installed"
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    return None


@cache
def _no_device() -> str | None:
    reason: str | None = _kernels().unavailable()
    return reason


def unavailable() -> str | None:
    """The reason why this installation cannot run on this machine; None if it can."""
    reason = unavailable_reason or _import_error()
    if reason is not None or _interprets():
        return reason
    return _no_device()


_supported_devices: set[torch.device] = set()  # failures are not cached: they can be temporary


def _unsupported_device(device: torch.device) -> str | None:
    if device in _supported_devices:
        return None
    with as_current(device):
        reason: str | None = _kernels().unsupported(device)
    if reason is None:
        _supported_devices.add(device)
    return reason


def unsupported(param: Tensor) -> str | None:
    """The reason why the backend cannot update a parameter; None if it can."""
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    device = param.device
    if is_interpreted():
        if device.type == "cpu":
            return None
        return f"it is on {device}, and TRITON_INTERPRET works on CPU tensors only"
    if device.type != "cuda":  # also the name of ROCm devices in torch
        return f"it is on {device}, expected a CUDA or ROCm device"
    return unavailable() or _unsupported_device(device)
