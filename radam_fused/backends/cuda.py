"""The CUDA backend: csrc/cuda through the extension."""

from functools import cache

import torch
from torch import Tensor

from ..extension import _C, why_not
from ..state import has_own_memory
from .launches import Kind, TableLaunch, Workspace, as_current, current_stream


def architectures() -> str | None:
    """CUDA architectures that this build has code for, as CMake names them; None without CUDA."""
    return getattr(_C, "cuda_architectures", None)


class CudaLaunch(TableLaunch):
    """Parameters stepped by one launch of the CUDA kernel on the caller's stream.

    Args:
        kind: What its parameters have in common.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind, _C.cuda_chunk)
        self._workspace = Workspace(kind.device)
        self._upload = _C.CudaUpload()  # what the workspace holds

    def run(self) -> None:
        """See Launch.run."""
        if not self.table.is_active():
            return
        stream = current_stream(self.kind.device)
        with as_current(self.kind.device):
            if self._capturing:
                # A replay writes the workspace again, from the arguments of the graph's kernels.
                workspace, upload = self._workspace.make(self._size), _C.CudaUpload()
            else:
                workspace, is_new = self._workspace.get(self._size, stream)
                if is_new:
                    self._upload = _C.CudaUpload()
                upload = self._upload
            upload.step(self.table, workspace, 0 if stream is None else stream.cuda_stream)


@cache
def unavailable() -> str | None:
    """Why this installation cannot run it on this machine, or None."""
    if why_not is not None:
        return why_not
    if architectures() is None:
        return "the extension was built without CUDA"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    reason: str | None = _C.cuda_missing()
    return reason


@cache
def _unusable(device: int) -> str | None:
    reason: str | None = None if architectures() is None else _C.cuda_unusable(device)
    return reason


def unsupported(param: Tensor) -> str | None:
    """Why it cannot step a parameter, or None."""
    if param.device.type != "cuda":
        return f"it is on {param.device}, not on a CUDA device"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return _unusable(param.device.index)
