"""The CUDA backend: runs the kernels of csrc/cuda."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..extension import _C, unavailable_reason
from ..tensors import has_own_memory
from .interface import Kind, Reducer
from .launches import TableLaunch, Workspace, as_current, current_stream


def architectures() -> str | None:
    """The CUDA architectures of this build, in the notation of CMake; None without CUDA."""
    return getattr(_C, "cuda_architectures", None)


class CudaReducer:
    """See Reducer."""

    def fold(self, numbers: Tensor) -> Tensor:
        """See Reducer.fold."""
        size = _C.cuda_fold_results(numbers.numel())
        results = Workspace(numbers.device).make(8 * size).view(torch.float64)
        with as_current(numbers.device):
            _C.cuda_fold(numbers, results, _handle(current_stream(numbers.device)))
        return results[-1]

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
            stream = _handle(current_stream(state.device))
            _C.cuda_clip(square_sum, grad_scale, failed, *options, state, stream)


def _handle(stream: Any) -> int:
    return 0 if stream is None else stream.cuda_stream


class CudaLaunch(TableLaunch):
    """Updates parameters with one run of the CUDA step kernel on the current stream.

    Args:
        kind: The common properties of its parameters.
    """

    reducer: Reducer | None = CudaReducer()

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind, _C.cuda_chunk)
        self._workspace = Workspace(kind.device)
        self._scratch = Workspace(kind.device)
        self._upload = _C.CudaUpload()  # knows the content of the workspace
        self._prepared: Any = None  # workspace and upload of a step whose norm has been taken

    def sum_squares(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """See Launch.sum_squares."""
        if not self.table.is_active():
            return
        self._begin(len(first_of_group))
        stream = current_stream(self.kind.device)
        with as_current(self.kind.device):
            self._prepared = self._prepare(stream)
            workspace, upload = self._prepared
            scratch = self._scratch_of_step(upload, stream)
            handle = _handle(stream)
            upload.sum_squares(self.table, workspace, handle, first_of_group, sums, scratch)

    def run(self) -> None:
        """See Launch.run."""
        if not self.table.is_active():
            return
        stream = current_stream(self.kind.device)
        with as_current(self.kind.device):
            workspace, upload = self._prepared or self._prepare(stream)
            self._prepared = None
            tracked: tuple[Any, ...] = ()
            if self._tracked is not None:
                tracked = *self._tracked, self._scratch_of_step(upload, stream)
                self._tracked = None
            upload.step(self.table, workspace, _handle(stream), *tracked)

    def _scratch_of_step(self, upload: Any, stream: Any) -> Tensor:
        """Memory for the sums of the chunks."""
        size = _C.cuda_scratch_bytes(self.table)
        if self._capturing:
            upload.forget_rows()
            return self._scratch.make(size)
        scratch, is_new = self._scratch.get(size, stream)
        if is_new:
            upload.forget_rows()
        return scratch

    def _prepare(self, stream: Any) -> tuple[Tensor, Any]:
        """The workspace of a step, and what knows its content."""
        if self._capturing:
            # Each replay writes the workspace, from the kernel arguments in the graph.
            return self._workspace.make(self._size), _C.CudaUpload()
        workspace, is_new = self._workspace.get(self._size, stream)
        if is_new:
            self._upload = _C.CudaUpload()
        return workspace, self._upload


# Successes. Failures are not kept: they can be temporary.
_found_device = False
_supported_devices: set[torch.device] = set()


def unavailable() -> str | None:
    """The reason why this installation cannot run on this machine; None if it can."""
    global _found_device
    if _found_device:
        return None
    if unavailable_reason is not None:
        return unavailable_reason
    if architectures() is None:
        return "the extension was built without CUDA"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    reason: str | None = _C.cuda_unavailable()
    if reason is not None:
        return f"no GPU that CUDA can use was found ({reason})"
    _found_device = True
    return None


def _unsupported_device(device: torch.device) -> str | None:
    if device in _supported_devices or architectures() is None:
        return None
    with as_current(device):
        reason: str | None = _C.cuda_unsupported(device.index)
    if reason is None:
        _supported_devices.add(device)
    return reason


def unsupported(param: Tensor) -> str | None:
    """The reason why the backend cannot update a parameter; None if it can."""
    if param.device.type != "cuda":
        return f"it is on {param.device}, expected a CUDA device"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return _unsupported_device(param.device)
