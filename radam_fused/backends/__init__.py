"""The backends, and the choice between them."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from . import cpu, cuda, eager, triton
from .interface import Kind, Launch, Reducer
from .launches import (
    Launches,
    TableLaunch,
    Workspace,
    is_capturing,
    new_numbers,
)
from .step import Step

__all__ = [
    "BACKENDS",
    "Backend",
    "Kind",
    "Launch",
    "Launches",
    "Reducer",
    "Step",
    "TableLaunch",
    "Workspace",
    "check_name",
    "check_options",
    "is_capturing",
    "new_numbers",
    "select",
]


class Backend(NamedTuple):
    """One backend.

    Attributes:
        name: The name that ``FusedRAdam(backend=...)`` takes.
        unavailable: Returns the reason why it cannot run in this installation on this machine, or
            None.
        unsupported: Returns the reason why it cannot update a parameter, or None.
        launch: Makes an empty launch for supported parameters of one kind.
        supports_capturable: Whether it can count steps on the parameters' device.
        only_by_name: Whether "auto" skips it.
    """

    name: str
    unavailable: Callable[[], str | None]
    unsupported: Callable[[Tensor], str | None]
    launch: Callable[[Kind], Launch]
    supports_capturable: bool = False
    only_by_name: Callable[[], bool] = lambda: False


# "auto" tries them in this order.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cuda", cuda.unavailable, cuda.unsupported, cuda.CudaLaunch, True),
        Backend(
            "triton",
            triton.unavailable,
            triton.unsupported,
            triton.TritonLaunch,
            True,
            triton.is_interpreted,
        ),
        Backend("cpu", cpu.unavailable, cpu.unsupported, cpu.CpuLaunch),
        Backend("eager", lambda: None, lambda param: None, eager.EagerLaunch),
    )
}


def check_name(name: str) -> None:
    """Check that a backend exists and is available.

    Raises:
        ValueError: No backend has this name.
        RuntimeError: The backend is unavailable; the message says why.
    """
    if name == "auto":
        return
    if not isinstance(name, str) or name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"Invalid backend: {name!r}, expected one of {known}")
    reason = BACKENDS[name].unavailable()
    if reason is not None:
        raise RuntimeError(f"backend={name!r} is not available: {reason}")


def _excludes(backend: Backend, differentiable: bool, capturable: bool) -> str | None:
    if differentiable and backend.name != "eager":
        return "differentiable=True needs the eager backend"
    if capturable and not backend.supports_capturable:
        return "capturable=True needs a backend that counts steps on the device"
    return None


def check_options(name: str, differentiable: bool, capturable: bool) -> None:
    """Check that a backend can step with the options of a group, whatever its parameters.

    Raises:
        RuntimeError: The named backend cannot; the message says why.
    """
    if name != "auto":
        reason = _excludes(BACKENDS[name], differentiable, capturable)
        if reason is not None:
            raise RuntimeError(f"backend={name!r} cannot step a group: {reason}")


def select(
    name: str, param: Tensor, param_name: str, differentiable: bool, capturable: bool
) -> tuple[Backend, str]:
    """Choose the backend that updates a parameter.

    Args:
        name: A backend's name, or "auto" for the first backend that supports the parameter.
        param: The parameter, or its local tensor if it is a DTensor.
        param_name: Its name in error messages.
        differentiable: Whether autograd records the step; only eager supports that.
        capturable: Whether the device counts the steps.

    Returns:
        The backend, and why the backends before it cannot update the parameter.

    Raises:
        RuntimeError: The named backend cannot update the parameter; the message says why.
    """
    check_name(name)
    reasons: dict[str, str] = {}
    automatic = (backend for backend in BACKENDS.values() if not backend.only_by_name())
    for backend in automatic if name == "auto" else (BACKENDS[name],):
        # In this order, because unavailable() initialises CUDA.
        reason = (
            _excludes(backend, differentiable, capturable)
            or backend.unsupported(param)
            or backend.unavailable()
        )
        if reason is None:
            return backend, _text(reasons)
        reasons[backend.name] = reason
    if name == "auto":
        raise RuntimeError(f"no backend can step {param_name}: {_text(reasons)}")
    raise RuntimeError(f"backend={name!r} cannot step {param_name}: {reasons[name]}")


def _text(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
