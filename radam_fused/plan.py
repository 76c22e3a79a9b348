"""The plan of a step: which launch updates each parameter, kept while it fits the tensors."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import backends, options
from .backends import Backend, Kind, Launch, Place, Step
from .extension import _C
from .flat import FlatBuffer, FlatGroup, Slot
from .state import (
    CPU,
    MOMENTS,
    New,
    State,
    check_grad,
    check_param,
    check_state,
    complete_states,
    fields,
    has_own_memory,
    move_counter,
    take_over_layout,
)

Groups = list[dict[str, Any]]
States = dict[Tensor, Any]


def name_of(groups: Groups, place: Place) -> str:
    """The name of a parameter in error messages."""
    index, i = place
    names = groups[index].get("param_names", ())
    return f"parameter {names[i]!r}" if i < len(names) else f"parameter {i} of group {index}"


class Launches:
    """The launches of a step. All of them read, then all compute, then all run."""

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
        """Add a parameter to the launch of its kind, and prepare its state for that launch.

        Every state tensor stays the same object.

        Args:
            place: Position of the parameter in the groups.
            param: The parameter.
            grad: Its gradient.
            state: Its state.
            moments: Names of the moments that the step needs.
            backend: The backend that updates it.
            counts_on_device: Whether its device counts its steps.
            slot: Its slot in a flat buffer, or None.
        """
        if backend.name != "eager" or not isinstance(state["step"], Tensor):
            move_counter(state, param.device if counts_on_device else CPU)
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

    def read(self, groups: Groups, states: States) -> bool:
        """Read every launch; False if a parameter does not fit its launch any more."""
        return all(launch.read(groups, states) for launch in self._by_kind.values())

    def misfit(self) -> tuple[Place, str]:
        """The place of a parameter that does not fit its launch, and the name of its tensor."""
        return next(found for found in (launch.misfit() for launch in self) if found[1])

    def run(self, step: Step) -> None:
        """Compute every launch, then run them.

        An error while computing leaves every tensor unchanged.
        """
        for launch in self._by_kind.values():
            launch.compute(step)
        for launch in self._by_kind.values():
            launch.run()

    def release(self) -> None:
        """Release every tensor that was read, without a step."""
        for launch in self._by_kind.values():
            launch.release()


class _Planned(NamedTuple):
    """A parameter on its way into a launch."""

    place: Place
    group: dict[str, Any]
    param: Tensor
    grad: Tensor
    state: State
    backend: Backend
    counts_on_device: bool


class Plan:
    """Assigns parameters to launches at their first gradient, and again after a change.

    Args:
        backend: The backend's name, or "auto".
        flat_groups: The flat buffers of each parameter group; empty without them.
        graph_launches: Launches of earlier plans whose memory captured graphs still use.

    Attributes:
        launches: The launches of the planned parameters.
    """

    def __init__(
        self, backend: str, flat_groups: list[FlatGroup], graph_launches: Sequence[Launch] = ()
    ) -> None:
        self.launches = Launches()
        self._backend = backend
        self._flat_groups = flat_groups
        self._graph_launches = graph_launches
        self._waiting: Any = None  # parameters in no launch yet; None: nothing is planned
        self._numbers: Any = None  # the options of the groups, as numbers
        self._options: list[tuple[Any, ...]] = []  # of each group, those that the plan depends on
        self._scaled = False  # whether a gradient scaler has been seen

    def graph_launches(self) -> list[Launch]:
        """The launches whose memory captured graphs use."""
        return [*self._graph_launches, *(x for x in self.launches if x.is_replayed)]

    def step(
        self,
        groups: Groups,
        states: States,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Run one step. Until the launches run, it writes only new states.

        Args:
            groups: The optimizer's parameter groups.
            states: The optimizer's state.
            grad_scale: The scale that the gradients were multiplied by, or None.
            found_inf: Nonzero if a gradient overflowed; the step is then skipped.
        """
        if not self._read(groups, states, grad_scale is not None or found_inf is not None):
            place, tensor = self.launches.misfit()
            raise RuntimeError(
                f"{tensor} of {name_of(groups, place)} changed while the step was prepared"
            )
        capturing = backends.is_capturing()
        self.launches.run(Step(groups, self._numbers, grad_scale, found_inf, capturing))
        if self._numbers is not None:
            self._numbers.release()

    def _read(self, groups: Groups, states: States, scaled: bool) -> bool:
        """Read the tensors of the step; plans first if they no longer fit the plan."""
        if self._fits(groups, states, scaled) and self.launches.read(groups, states):
            return True
        self._plan_all(groups, states, scaled)
        return self.launches.read(groups, states)

    def _fits(self, groups: Groups, states: States, scaled: bool) -> bool:
        """Whether the plan still holds; adds parameters with a first gradient to it."""
        if self._waiting is None or (scaled and not self._scaled):
            return False
        for index in self._numbers.read(groups):
            options.check(groups[index])
            planned = self._options[index] if index < len(self._options) else None
            if planned != options.planned(groups[index]):
                return False
        late = self._waiting.take(groups)
        if late:
            self._add(late, groups, states)
        return late is not None

    def _plan_all(self, groups: Groups, states: States, scaled: bool) -> None:
        """Plan every parameter that has a gradient, in new launches."""
        self._graph_launches, self.launches = self.graph_launches(), Launches()
        self._waiting = None
        self._scaled = self._scaled or scaled
        for flat in self._flat_groups:
            flat.check()
        for group in groups:
            options.check(group)
        self._options = [options.planned(group) for group in groups]
        self._numbers = backends.new_numbers()
        if _C is None:  # only eager is available; every step plans
            places = [(g, i) for g, group in enumerate(groups) for i in range(len(group["params"]))]
            with_grad = [(g, i) for g, i in places if groups[g]["params"][i].grad is not None]
            self._add(with_grad, groups, states)
            return
        self._numbers.read(groups)
        waiting = _C.Waiting(groups)
        self._add(waiting.take(groups), groups, states)
        self._waiting = waiting

    def _add(self, places: Sequence[Place], groups: Groups, states: States) -> None:
        """Check parameters, complete their states, and add them to launches."""
        names = [tuple(field.name for field in fields(group)) for group in groups]
        found = self._check(places, groups, states)
        if any(it.group["capturable"] for it in found) and backends.is_capturing():
            raise RuntimeError(
                "cannot capture this step: it allocates state. Run one step after any change, then "
                "capture"
            )
        complete_states(
            [
                New(
                    it.param,
                    it.state,
                    it.group,
                    names[it.place[0]],
                    it.param.device if it.counts_on_device else CPU,
                )
                for it in found
            ]
        )
        for it in found:
            moments = [name for name in names[it.place[0]] if name in MOMENTS]
            slot = None
            if self._flat_groups:
                buffer, slot = self._find_slot(it.param, name_of(groups, it.place))
                buffer.take_over(slot, it.state, moments)
            self.launches.add(
                it.place,
                it.param,
                it.grad,
                it.state,
                moments,
                it.backend,
                it.counts_on_device,
                slot,
            )
        # Last, so that an error leaves no new state behind.
        for it in found:
            if states.get(it.param) is not it.state:
                states[it.param].update(it.state)

    def _check(self, places: Sequence[Place], groups: Groups, states: States) -> list[_Planned]:
        """Check parameters with their gradients and states, and choose a backend for each."""
        found = []
        chosen: dict[tuple[Any, ...], Backend] = {}
        for place in places:
            group = groups[place[0]]
            param, name = group["params"][place[1]], name_of(groups, place)
            grad, state = param.grad, states.get(param)
            if grad is None:
                raise RuntimeError(f"grad of {name} changed while the step was prepared")
            check_param(param, name)
            check_grad(param, grad, name)
            if state:
                check_state(param, state, name)
            differentiable, capturable = group["differentiable"], group["capturable"]
            kind = type(param), param.device, differentiable, capturable
            if kind not in chosen:
                chosen[kind] = backends.select(
                    self._backend, param, name, differentiable, capturable
                )
            state = state or {}
            backend = self._addressing(chosen[kind], (grad, *state.values()), name)
            on_device = backend.supports_capturable and self._counts_on_device(group, state)
            found.append(_Planned(place, group, param, grad, state, backend, on_device))
        return found

    def _addressing(self, backend: Backend, tensors: Iterable[Any], name: str) -> Backend:
        """The backend, or eager if a tensor keeps its memory in other tensors."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not has_own_memory(tensor):
                if backend.name != "eager" and self._backend != "auto":
                    raise RuntimeError(
                        f"backend={backend.name!r} cannot step {name}: its gradient or state has a "
                        f"{type(tensor).__name__}, which keeps its memory in other tensors"
                    )
                return backends.BACKENDS["eager"]
        return backend

    def _find_slot(self, param: Tensor, name: str) -> tuple[FlatBuffer, Slot]:
        for flat in self._flat_groups:
            if (found := flat.find(param)) is not None:
                return found
        raise ValueError(
            f"{name} lies in no flat buffer: it was put into its group after the buffers were made"
        )

    def _counts_on_device(self, group: dict[str, Any], state: State) -> bool:
        """Whether the device counts the steps of a parameter, if its backend can."""
        step = state.get("step")
        return (
            group["capturable"]
            # The flag of a scaler stays on the device, so the device must decide whether a step
            # counts; the counters stay there afterwards.
            or self._scaled
            or (isinstance(step, Tensor) and step.device.type != "cpu")
        )
