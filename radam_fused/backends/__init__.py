"""The engines and the choice between them."""

from torch import Tensor

from . import cpu, cuda, eager, triton
from .base import Backend, Graph, Launch, Setup, State

__all__ = [
    "BACKENDS",
    "Backend",
    "Graph",
    "Launch",
    "Setup",
    "State",
    "check_name",
    "select",
]

# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (cuda.BACKEND, triton.BACKEND, cpu.BACKEND, eager.BACKEND)
}


def check_name(name: str) -> None:
    """Raise where no such backend can run in this installation.

    Raises:
        ValueError: There is no backend of that name.
        RuntimeError: There is, but it cannot run here; the message says why.
    """
    if name == "auto":
        return
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"Invalid backend: {name!r}, expected one of {known}")
    reason = BACKENDS[name].unavailable()
    if reason is not None:
        raise RuntimeError(f"backend={name!r} is not available: {reason}")


def _obstacle(
    backend: Backend, param: Tensor, differentiable: bool, capturable: bool
) -> str | None:
    """Why a backend that this installation has cannot step a parameter, or None."""
    if differentiable and backend is not eager.BACKEND:
        return "differentiable=True needs the eager backend"
    if capturable and not backend.counts_on_device:
        return "capturable=True needs an engine that counts its steps on the device"
    return backend.refuses(param)


def select(
    name: str, param: Tensor, param_name: str, differentiable: bool, capturable: bool
) -> Backend:
    """The backend that steps a parameter.

    Args:
        name: As asked for; "auto" takes the first that serves.
        param: The parameter.
        param_name: How an error calls it.
        differentiable: Whether autograd is to record the step, which only eager can.
        capturable: Whether the steps are to be counted on the device.

    Raises:
        RuntimeError: The backend asked for cannot serve; the message says why.
    """
    check_name(name)
    reasons = {}
    automatic = (backend for backend in BACKENDS.values() if not backend.only_by_name())
    for backend in automatic if name == "auto" else (BACKENDS[name],):
        # In this order, because to ask for a GPU is to start CUDA.
        reason = _obstacle(backend, param, differentiable, capturable) or backend.unavailable()
        if reason is None:
            return backend
        reasons[backend.name] = reason
    if name == "auto":
        raise RuntimeError(
            f"no backend can step {param_name}: "
            + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        )
    raise RuntimeError(f"backend={name!r} cannot step {param_name}: {reasons[name]}")
