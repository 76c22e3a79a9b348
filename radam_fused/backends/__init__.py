"""The engines and the choice between them."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..rectification import Coefficients, coefficients
from . import eager, native
from .base import Backend, Launch, State

__all__ = ["ABSENT", "BACKENDS", "Backend", "Launch", "State", "check_name", "prepare", "select"]

# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (native.CPU, eager.BACKEND)}

# Names that are settled but that this release does not serve.
ABSENT: dict[str, str] = {
    "cuda": "this release has no CUDA engine",
    "triton": "this release has no Triton engine",
}


def check_name(name: str) -> None:
    """Raise where no such backend can run in this installation.

    Raises:
        ValueError: There is no backend of that name.
        RuntimeError: There is, but it cannot run here; the message says why.
    """
    if name == "auto":
        return
    if name in BACKENDS:
        reason = BACKENDS[name].unavailable()
    elif name in ABSENT:
        reason = ABSENT[name]
    else:
        known = ", ".join(("auto", *ABSENT, *BACKENDS))
        raise ValueError(f"Invalid backend: {name!r}, expected one of {known}")
    if reason is not None:
        raise RuntimeError(f"backend={name!r} is not available: {reason}")


def select(name: str, param: Tensor, param_name: str, differentiable: bool) -> Backend:
    """The backend that steps a parameter.

    Args:
        name: As asked for; "auto" takes the first that serves.
        param: The parameter.
        param_name: How an error calls it.
        differentiable: Whether autograd is to record the step, which only eager can.

    Raises:
        RuntimeError: The backend asked for cannot serve; the message says why.
    """
    if differentiable and name in ("auto", "eager"):
        return eager.BACKEND
    check_name(name)
    if name == "auto":
        return next(
            backend
            for backend in BACKENDS.values()
            if backend.unavailable() is None and backend.refuses(param) is None
        )
    reason = (
        "differentiable=True needs the eager backend"
        if differentiable
        else BACKENDS[name].refuses(param)
    )
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot step {param_name}: {reason}")
    return BACKENDS[name]


def prepare(
    launches: Iterable[Launch], arguments: dict[str, Any]
) -> list[tuple[Launch, list[Coefficients]]] | None:
    """Refresh launches and compute what each is to run with; writes nothing.

    Args:
        launches: Those of one group.
        arguments: The group's, for :func:`radam_fused.rectification.coefficients`.

    Returns:
        The launches with their coefficients, or None where one no longer fits its tensors.
    """
    prepared = []
    for launch in launches:
        counts = launch.refresh()
        if counts is None:
            return None
        prepared.append((launch, [coefficients(int(t), **arguments) for t in counts]))
    return prepared
