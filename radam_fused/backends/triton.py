"""The Triton engine: triton_kernels/."""

import os
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
from .device import DeviceLaunch, as_current

_OLDEST = (3, 6)


class TritonLaunch(DeviceLaunch):
    """A bucket stepped by one launch of the Triton kernel on the caller's stream."""

    def __init__(self, bucket: Bucket) -> None:
        self._module = _module()
        param, state = bucket.params[0], bucket.states[0]
        grad = param if param.grad is None else param.grad
        self._dtypes = (param.dtype, grad.dtype, state["exp_avg"].dtype)
        self._amsgrad = bucket.setup.amsgrad
        self._size = len(bucket)
        size = self._module.workspace_bytes(self._size)
        super().__init__(bucket, extension.TensorTable, self._module.CHUNK, size)

    def _forget_uploads(self) -> None:
        where = self._workspace.data_ptr(), self._size
        what = self._dtypes, self._amsgrad, self._counts_on_device
        try:
            self._kernels = self._module.Launch(*where, *what)
        except Exception as error:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self._dtypes)
            raise RuntimeError(
                f"backend='triton' cannot compile a step on {self._device} for parameters, "
                f"gradients and moments of {names}: {error}"
            ) from error

    def _step(self, stream: Any, due: list[Coefficients]) -> None:
        self._kernels.step(self._table.rows.segments, due)

    def _counting_step(self, stream: Any, inputs: DeviceInputs) -> None:
        self._kernels.counting_step(self._table.rows.segments, self._table.counters, *inputs)


def version() -> str | None:
    """Triton's version, or None where it is not installed or broken."""
    try:
        import triton

        found: str = triton.__version__
    except Exception:  # whatever a broken installation raises
        return None
    return found


@cache
def _module() -> Any:
    """The module that launches the kernels; whatever its import raises."""
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ImportError(f"triton {triton.__version__} is too old, expected {oldest} or later")
    from ..triton_kernels import launch

    return launch


def _is_interpreted() -> bool:
    """Whether Triton interprets the kernels in Python, for debugging, on tensors of the CPU."""
    # Asked first, because to import triton takes a while.
    return bool(os.environ.get("TRITON_INTERPRET")) and _unloadable() is None and _interprets()


def _interprets() -> bool:
    interprets: bool = _module().is_interpreted
    return interprets


def _launches(params: Sequence[Tensor], states: Sequence[State], setup: Setup) -> list[Launch]:
    return [TritonLaunch(bucket) for bucket in buckets(params, states, setup)]


@cache
def _unloadable() -> str | None:
    try:
        _module()
    except Exception as error:  # whatever a broken installation raises
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "triton is not installed"
        return f"triton does not load: {type(error).__name__}: {error}"
    return None


@cache
def _without_device() -> str | None:
    reason: str | None = _module().missing()
    return reason


def _unavailable() -> str | None:
    reason = _unloadable()
    if reason is not None or _interprets():
        return reason
    return _without_device()


_proven: set[torch.device] = set()  # a failure may pass, so it is not remembered


def _unusable(device: torch.device) -> str | None:
    if device in _proven:
        return None
    with as_current(device):
        reason: str | None = _module().unusable(device)
    if reason is None:
        _proven.add(device)
    return reason


def _refuses(param: Tensor) -> str | None:
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    device = param.device
    if _is_interpreted():
        if device.type == "cpu":
            return None
        return f"it is on {device}, and TRITON_INTERPRET reaches only the CPU's memory"
    if device.type != "cuda":  # as torch calls ROCm's too
        return f"it is on {device}, not on a CUDA or ROCm device"
    return _unavailable() or _unusable(device)


BACKEND: Backend = Backend(
    name="triton",
    unavailable=_unavailable,
    refuses=_refuses,
    launches=_launches,
    counts_on_device=True,
    only_by_name=_is_interpreted,
)
