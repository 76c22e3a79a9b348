"""The backends and the choice between them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..flat import Slot
from ..state import CPU, State, place_counter, take_over_layout
from . import cpu, cuda, eager, triton
from .launches import Kind, Launch, Place, Step, is_capturing, new_numbers

__all__ = [
    "BACKENDS",
    "Backend",
    "Launches",
    "Place",
    "Step",
    "check_name",
    "is_capturing",
    "new_numbers",
    "select",
]


class Backend(NamedTuple):
    """One backend.

    Attributes:
        name: As in ``FusedRAdam(backend=...)``.
        unavailable: Why this installation cannot run it on this machine, or None.
        unsupported: Why it cannot step a parameter, or None.
        launch: Makes an empty launch for parameters that it supports.
        supports_capturable: Whether it can count steps where the parameters are.
        only_by_name: Whether "auto" passes over it.
    """

    name: str
    unavailable: Callable[[], str | None]
    unsupported: Callable[[Tensor], str | None]
    launch: Callable[[Kind], Launch]
    supports_capturable: bool = False
    only_by_name: Callable[[], bool] = lambda: False


# In the order in which "auto" tries them.
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
    """Check that a backend of this name can run in this installation.

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


def _unsupported(
    backend: Backend, param: Tensor, differentiable: bool, capturable: bool
) -> str | None:
    if differentiable and backend.name != "eager":
        return "differentiable=True needs the eager backend"
    if capturable and not backend.supports_capturable:
        return "capturable=True needs a backend that counts steps on the device"
    return backend.unsupported(param)


def select(
    name: str, param: Tensor, param_name: str, differentiable: bool, capturable: bool
) -> Backend:
    """The backend that steps a parameter.

    Args:
        name: The backend's, or "auto" for the first that can.
        param: The parameter.
        param_name: Its name in errors.
        differentiable: Whether autograd is to record the step, which only eager can.
        capturable: Whether the device is to count the steps.

    Raises:
        RuntimeError: The named backend cannot step the parameter; the message says why.
    """
    check_name(name)
    reasons = {}
    automatic = (backend for backend in BACKENDS.values() if not backend.only_by_name())
    for backend in automatic if name == "auto" else (BACKENDS[name],):
        # In this order, because asking for a GPU starts CUDA.
        reason = _unsupported(backend, param, differentiable, capturable) or backend.unavailable()
        if reason is None:
            return backend
        reasons[backend.name] = reason
    if name == "auto":
        raise RuntimeError(
            f"no backend can step {param_name}: "
            + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        )
    raise RuntimeError(f"backend={name!r} cannot step {param_name}: {reasons[name]}")


class Launches:
    """The launches of a step: all read, then all compute, then all run."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, Kind], Launch] = {}

    def __iter__(self) -> Iterator[Launch]:
        return iter(self._by_kind.values())

    def add(
        self,
        place: Place,
        param: Tensor,
        grad: Tensor,
        state: State,
        moments: Sequence[str],
        backend: Backend,
        counts_on_device: bool,
        slot: Slot | None = None,
    ) -> None:
        """Add a parameter to the launch of its kind, and bring its state into the form for it.

        Every tensor of the state stays the same object.

        Args:
            place: Where the groups hold the parameter.
            param: The parameter.
            grad: Its gradient.
            state: Its state.
            moments: Those of its tensors that are moments, as far as the step needs them.
            backend: The backend that steps it.
            counts_on_device: Whether its steps are counted where it is.
            slot: Its place in a flat buffer, or None.
        """
        if backend.name != "eager" or not isinstance(state["step"], Tensor):
            place_counter(state, param.device if counts_on_device else CPU)
        if backend.name != "eager":
            take_over_layout(param, state, moments)
        kind = Kind(
            param.device,
            param.dtype,
            grad.dtype,
            state["exp_avg"].dtype,
            state["step"].dtype,
            ("step", *moments),
            counts_on_device,
        )
        if (backend.name, kind) not in self._by_kind:
            self._by_kind[backend.name, kind] = backend.launch(kind)
        types = {type(tensor) for tensor in (param, grad, *state.values())}
        self._by_kind[backend.name, kind].add(place, types, slot)

    def read(self, groups: list[dict[str, Any]], states: dict[Tensor, Any]) -> bool:
        """Read every launch; False if a parameter does not fit its launch (any more)."""
        return all(launch.read(groups, states) for launch in self._by_kind.values())

    def misfit(self) -> tuple[Place, str]:
        """Where a parameter is that does not fit its launch, and which of its tensors."""
        return next(found for found in (launch.misfit() for launch in self) if found[1])

    def run(self, step: Step) -> None:
        """Compute what every launch needs of the step, then run them.

        An error in computing leaves every tensor as it was.
        """
        for launch in self._by_kind.values():
            launch.compute(step)
        for launch in self._by_kind.values():
            launch.run()

    def release(self) -> None:
        """Let go of every tensor that was read, without a step."""
        for launch in self._by_kind.values():
            launch.release()
