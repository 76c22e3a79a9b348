"""The CUDA engine: csrc/cuda through the extension."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..inputs import DeviceInputs
from ..rectification import Coefficients
from ..tensors import has_own_memory
from . import extension
from .base import Backend, Launch, Setup, State
from .buckets import Bucket, buckets
from .device import DeviceLaunch

_C: Any = None if extension.why_not else extension._C


def architectures() -> str | None:
    """CUDA architectures that this build has code for, as CMake names them; None without CUDA."""
    return getattr(_C, "cuda_architectures", None)


class CudaLaunch(DeviceLaunch):
    """A bucket stepped by one launch of the CUDA kernel on the caller's stream."""

    def __init__(self, bucket: Bucket) -> None:
        size = _C.cuda_workspace_bytes(len(bucket))
        super().__init__(bucket, _C.TensorTable, _C.cuda_chunk, size)

    def _forget_uploads(self) -> None:
        self._kernels = _C.CudaLaunch()

    def _step(self, stream: Any, due: list[Coefficients]) -> None:
        self._kernels.step(self._table.rows, self._workspace, _handle(stream), due)

    def _counting_step(self, stream: Any, inputs: DeviceInputs) -> None:
        where = self._table.rows, self._workspace, _handle(stream)
        self._kernels.counting_step(*where, *inputs)


def _handle(stream: Any) -> int:
    """What the runtime calls a stream; 0 where the tests run the grid on the host."""
    return 0 if stream is None else stream.cuda_stream


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
