"""The Triton engine: triton_kernels/."""

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..extension import why_not
from ..state import has_own_memory
from .launches import Kind, TableLaunch, Workspace, as_current, current_stream

_OLDEST = (3, 6)


class TritonLaunch(TableLaunch):
    """Parameters stepped by one launch of the Triton kernel on the caller's stream.

    Args:
        kind: What its parameters have in common.

    Raises:
        RuntimeError: A kernel cannot be compiled for the device.
    """

    def __init__(self, kind: Kind) -> None:
        module = _module()
        super().__init__(kind, module.CHUNK)
        self._new_upload = module.Upload
        counter = kind.step if kind.counts_on_device else None
        dtypes = kind.param, kind.grad, kind.moment
        amsgrad = "max_exp_avg_sq" in kind.state
        with as_current(kind.device):
            self._kernels = module.Kernels(kind.device, dtypes, amsgrad, counter)
        self._workspace = Workspace(kind.device)
        self._upload: Any = None  # what the workspace holds
        self._staging: Tensor | None = None  # for the next capture
        self._of_graphs: list[Tensor] = []  # what replays copy from

    def run(self) -> None:
        """See Launch.run."""
        table = self.table
        if not table.is_active():
            return
        with as_current(self.kind.device):
            upload = self._captured_upload() if self._capturing else self._kept_upload()
            numbers = table.options if self.kind.counts_on_device else table.coefficients
            table.start()
            if segments := table.segments:
                self._kernels.step(upload, segments, numbers)
            table.finish()

    def _kept_upload(self) -> Any:
        workspace, is_new = self._workspace.get(self._size, current_stream(self.kind.device))
        if is_new:
            self._upload = self._new_upload(workspace)
        if self.kind.counts_on_device and (
            self._staging is None or self._staging.numel() < self._size
        ):
            pinned = self.kind.device.type != "cpu"
            self._staging = torch.empty(
                self._size, dtype=torch.uint8, device="cpu", pin_memory=pinned
            )
        return self._upload

    def _captured_upload(self) -> Any:
        """An upload in the graph's own memory, from memory that was pinned before the capture."""
        if self._staging is None or self._staging.numel() < self._size:
            raise RuntimeError(
                "backend='triton' cannot capture this step: run one step that is not captured "
                "before each capture"
            )
        self._of_graphs.append(self._staging)
        self.is_replayed = True
        self._staging = None
        return self._new_upload(self._workspace.make(self._size), self._of_graphs[-1])


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


def is_interpreted() -> bool:
    """Whether Triton interprets the kernels in Python, for debugging, on tensors of the CPU."""
    # Asked first, because to import triton takes a while.
    return bool(os.environ.get("TRITON_INTERPRET")) and _unloadable() is None and _interprets()


def _interprets() -> bool:
    interprets: bool = _module().is_interpreted
    return interprets


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


def unavailable() -> str | None:
    """Why this installation cannot run it on this machine, or None."""
    reason = why_not or _unloadable()
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


def unsupported(param: Tensor) -> str | None:
    """Why it cannot step a parameter, or None."""
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    device = param.device
    if is_interpreted():
        if device.type == "cpu":
            return None
        return f"it is on {device}, and TRITON_INTERPRET reaches only the CPU's memory"
    if device.type != "cuda":  # as torch calls ROCm's too
        return f"it is on {device}, not on a CUDA or ROCm device"
    return unavailable() or _unusable(device)
