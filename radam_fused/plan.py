"""The plan of a step: which launch updates each parameter, kept while it fits the tensors."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import backends
from .allocation import New, complete_states, move_counters, new
from .backends import (
    Backend,
    Launch,
    Launches,
    Step,
)
from .caller import warn_user
from .conversions import Before, check_conversion
from .dtensors import check_not_flat, local
from .elements import Elements, elements_of
from .extension import _C
from .faults import changed, find_fault
from .flat import FlatBuffer, FlatGroup, Slot
from .formats import check_format
from .groups import Groups, Place, States, given_name, name_of, params_of, with_gradient
from .norms import Norms, NormSettings
from .option_sets import OptionSet
from .overlap import Range, extent
from .separation import are_apart, check_apart
from .spread import Spread
from .state import ELEMENTWISE, State, check_grad, check_param, check_state
from .tensors import has_own_memory, is_dense


class _Planned(NamedTuple):
    """A parameter on its way into a launch."""

    place: Place
    param: Tensor
    grad: Tensor
    new: New
    backend: Backend
    home: tuple[FlatBuffer, Slot] | None
    counts_on_device: bool
    elements: Elements | None

    def counter_device(self) -> torch.device:
        """The device that its step counter must be on. The eager backend takes any."""
        step = self.new.state["step"]
        if self.backend.name == "eager" and isinstance(step, Tensor):
            return step.device
        return self.param.device if self.counts_on_device else self.new.counter_device


_Chosen = dict[tuple[Any, ...], tuple[Backend, str]]  # by the kind of a parameter


class Plan:
    """Assigns parameters to launches at their first gradient, and again after a change.

    Args:
        backend: The backend's name, or "auto".
        options: The options of the optimizer's class.
        flat_groups: The flat buffers of each parameter group; empty without them. Those that hold
            no parameter of the optimizer any more are dropped.
        graph_launches: Launches of earlier plans whose memory captured graphs still use.
        warned: What the user has been warned of: misspelled options, and the eager backend.
        norms: Takes the norms of the optimizer's steps.

    Attributes:
        launches: The launches of the planned parameters.
    """

    def __init__(
        self,
        backend: str,
        options: OptionSet,
        flat_groups: list[FlatGroup] | None = None,
        graph_launches: Sequence[Launch] = (),
        warned: set[str] | None = None,
        norms: Norms | None = None,
    ) -> None:
        self.launches = Launches()
        self._backend = backend
        self._options = options
        self._flat_groups = [] if flat_groups is None else flat_groups
        self._graph_launches = graph_launches
        self._warned = set() if warned is None else warned
        self._norms = Norms() if norms is None else norms
        self._spread: Spread | None = None  # of the groups; None: not known yet
        self._waiting: Any = None  # parameters in no launch yet; None: nothing is planned
        self._numbers: Any = None  # the options of the groups, as numbers
        self._planned: list[tuple[Any, ...]] = []  # of each group, the options of the plan
        self._before: list[Before] = []  # the states that this step completes, as they were

    def graph_launches(self) -> list[Launch]:
        """The launches whose memory captured graphs use."""
        return [*self._graph_launches, *(x for x in self.launches if x.is_replayed)]

    def step(
        self,
        groups: Groups,
        states: States,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        settings: NormSettings | None = None,
    ) -> None:
        """Run one step. An error before the launches run leaves all tensors and states unchanged.

        Args:
            groups: The optimizer's parameter groups.
            states: The optimizer's state.
            grad_scale: The scale that the gradients were multiplied by, or None.
            found_inf: Nonzero if a gradient overflowed; the step is then skipped.
            settings: What the step does with the norm of the gradients; None: it takes no norm.
        """
        # The processes that take the norm together.
        must_join = settings is not None and settings.of_gradients
        try:
            self._read(groups, states, is_separate=settings is not None)
            step = Step(groups, self._options, self._numbers, grad_scale, found_inf)
            self.launches.place_gradients(step)
            if settings is not None and settings.of_gradients:
                spread = self._spread_of(groups, settings)
                must_join = False
                self._norms.measure(self.launches, step, settings, spread)
            self.launches.compute(step)
            if settings is not None and settings.of_update:
                self._norms.track(self.launches, groups)
        except BaseException as error:
            if must_join and settings is not None and isinstance(error, Exception):
                with suppress(Exception):  # the first error counts
                    self._spread_of(groups, settings).fail()
            self._restore(states)
            if isinstance(error, Exception):
                fault = find_fault(groups, states, self._options)
                if fault is not None:
                    raise fault from None
            raise
        self._before = []
        self.launches.run()
        if settings is not None and settings.of_update:
            spread = self._spread_of(groups, settings)
            self._norms.finish(self.launches, groups, settings, spread)
        if self._numbers is not None:
            self._numbers.release()

    def _restore(self, states: States) -> None:
        """Undo what the step has done to states, and to parameters that got other masters."""
        for before in self._before:
            before.restore(states)
        self._before = []

    def _spread_of(self, groups: Groups, settings: NormSettings) -> Spread:
        """How the parameters are spread over processes."""
        if self._spread is None or self._spread.beyond is not settings.beyond:
            self._spread = Spread(groups, settings.beyond)
        return self._spread

    def _read(self, groups: Groups, states: States, is_separate: bool) -> None:
        """Read the tensors of the step; plans first if they no longer fit the plan."""
        if not (self._fits(groups, states) and self.launches.read(groups, states, is_separate)):
            self._plan_all(groups, states)
            self._read_planned(groups, states, is_separate)
        if self.launches.have_moved() and not are_apart(self.launches, groups, states):
            self._plan_all(groups, states)
            self._read_planned(groups, states, is_separate)

    def _read_planned(self, groups: Groups, states: States, is_separate: bool) -> None:
        if not self.launches.read(groups, states, is_separate):
            raise changed(groups, states, *self.launches.misfit())

    def _fits(self, groups: Groups, states: States) -> bool:
        """Whether the plan still holds; adds parameters with a first gradient to it."""
        if self._waiting is None:
            return False
        for index in self._numbers.read(groups):
            self._check_options(groups, index)
            planned = self._planned[index] if index < len(self._planned) else None
            if planned != self._options.planned(groups[index]):
                return False
        late = self._waiting.take(groups)
        if late:
            self._add(late, groups, states)
        return late is not None

    def _check_options(self, groups: Groups, index: int) -> None:
        self._options.check(groups[index], index)
        self._options.warn_of_misspelled(groups[index], self._warned)

    def _plan_all(self, groups: Groups, states: States) -> None:
        """Plan every parameter that has a gradient, in new launches."""
        self.launches.release()
        self._graph_launches, self.launches = self.graph_launches(), Launches()
        self._waiting = self._spread = None
        for index in range(len(groups)):
            self._check_options(groups, index)
        self._planned = [self._options.planned(group) for group in groups]
        self._drop_flat_groups(groups)
        self._numbers = backends.new_numbers(self._options)
        if _C is None:  # only eager is available; every step plans
            self._add(with_gradient(groups), groups, states)
            return
        self._numbers.read(groups)
        waiting = _C.Waiting(groups)
        self._add(waiting.take(groups), groups, states)
        self._waiting = waiting

    def _drop_flat_groups(self, groups: Groups) -> None:
        """Release flat buffers whose parameters a framework has replaced in the groups."""
        if self._flat_groups:
            params = [param for group in groups for param in params_of(group)]
            for index, flat in enumerate(self._flat_groups):
                if flat.buffers and not any(flat.find(param) for param in params):
                    self._flat_groups[index] = FlatGroup.of([])

    def _add(self, places: Sequence[Place], groups: Groups, states: States) -> None:
        """Check parameters, complete their states, and add them to launches."""
        self._spread = None
        found = self._check(places, groups, states)
        devices = {it.param.device for it in found if groups[it.place[0]]["capturable"]}
        if any(map(backends.is_capturing, devices)):
            raise RuntimeError(
                "cannot capture this step: it allocates state. Run one step after any change, then "
                "capture"
            )
        self._before += [
            Before.of(it.param, it.new.state, it.new.format.names, states.get(it.param) is None)
            for it in found
        ]
        complete_states([it.new for it in found])
        move_counters(
            (it.new.state, it.counter_device(), it.new.counter_dtype)
            for it in found
            if not (isinstance(step := it.new.state["step"], Tensor) and not has_own_memory(step))
        )
        for it in found:
            elementwise = [name for name in it.new.format.names if name in ELEMENTWISE]
            slot = None
            if it.home is not None:
                buffer, slot = it.home
                slot.bring_back()
                buffer.take_over(slot, it.new.state, elementwise)
            self.launches.add(
                it.place,
                it.param,
                it.grad,
                it.new.state,
                elementwise,
                it.backend,
                it.counts_on_device,
                slot,
                it.new.format.draws,
                it.elements,
            )
        # Last, so that an error leaves no new state behind.
        for it in found:
            if states.get(it.param) is None:
                states[it.param] = it.new.state

    def _check(self, places: Sequence[Place], groups: Groups, states: States) -> list[_Planned]:
        """Check parameters with their gradients and states, and choose a backend for each."""
        found = []
        chosen: _Chosen = {}
        slow: list[tuple[Tensor, str, str]] = []  # parameters for eager, and why
        params = [params_of(group) for group in groups]
        for place in places:
            group = groups[place[0]]
            param, name = params[place[0]][place[1]], name_of(groups, place)
            grad, state = param.grad, states.get(param, {})
            if grad is None:
                raise changed(groups, states, place, "grad")
            if self._options.get(group, "fused") and param.is_meta:
                raise RuntimeError(
                    "`fused=True` requires all the params to be floating point Tensors of "
                    f"supported devices, but {name} is on meta"
                )
            check_param(param, name)
            check_grad(param, grad, name, self._options.name)
            if not isinstance(state, Mapping) or len(state) > 0:
                check_state(param, state, name)
            if self._flat_groups:
                check_not_flat(param, name)
            home = self._home(param)
            if home is not None:
                home[1].check(name)
            backend, why = self._choose(chosen, param, (grad, *state.values()), name, group)
            if backend.name == "eager" and not group["differentiable"] and _has_values(param):
                slow.append((param, name, why))
            needs = new(param, state, group, self._options)
            check_format(param, name, group, self._options)
            check_conversion(state, needs.format.moments, f" of {name}")
            draws = bool(needs.format.draws)
            elements = elements_of(param, place, name, groups) if draws else None
            on_device = backend.supports_capturable and self._counts_on_device(group, state)
            found.append(_Planned(place, param, grad, needs, backend, home, on_device, elements))
        if any(it.home is not None and not it.home[1].holds(it.param) for it in found):
            # Moved back into their buffers, they would no longer overlap.
            dense: list[Range] = []
            gapped: list[Range] = []
            for it in found:
                if has_own_memory(local(it.param)) and local(it.param).numel() > 0:
                    ranges = dense if is_dense(it.param) else gapped
                    ranges.append(extent(it.param, name_of(groups, it.place)))
            check_apart(dense, gapped)
        self._warn_of_eager(slow, groups)
        return found

    def _warn_of_eager(self, slow: list[tuple[Tensor, str, str]], groups: Groups) -> None:
        """Warn once if "auto" chose eager for more than 1 % of the elements with a gradient."""
        if self._backend != "auto" or not slow or "backend" in self._warned:
            return
        elements = sum(param.numel() for param, *_ in slow)
        params = (params_of(groups[g])[i] for g, i in with_gradient(groups))
        total = sum(param.numel() for param in params)
        if elements <= total / 100:
            return
        self._warned.add("backend")
        _, name, why = max(slow, key=lambda it: it[0].numel())
        warn_user(
            f"backend='auto' steps {len(slow)} parameters with {elements / total:.0%} of the "
            f"elements on the eager backend, which is slow. {name}: {why}"
        )

    def backends(self, groups: Groups, states: States) -> dict[str, list[str]]:
        """The parameters that each backend steps; see FusedOptimizer.backends."""
        found: dict[str, list[str]] = {}
        chosen: _Chosen = {}
        for g, group in enumerate(groups):
            for i, param in enumerate(params_of(group)):
                if not param.requires_grad and param.grad is None:
                    continue
                name = name_of(groups, (g, i))
                tensors = (param.grad, *states.get(param, {}).values())
                backend, _ = self._choose(chosen, param, tensors, name, group)
                found.setdefault(backend.name, []).append(given_name(groups, (g, i)) or name)
        return found

    def _choose(
        self,
        chosen: _Chosen,
        param: Tensor,
        tensors: Iterable[Any],
        name: str,
        group: dict[str, Any],
    ) -> tuple[Backend, str]:
        """The backend that steps a parameter, and why those before it cannot.

        Args:
            chosen: The choices for other kinds of parameters.
            param: The parameter.
            tensors: Its gradient and state.
            name: Its name in error messages.
            group: Its group.
        """
        differentiable, capturable = group["differentiable"], group["capturable"]
        part = local(param)
        kind = type(part), param.device, differentiable, capturable
        if kind not in chosen:
            chosen[kind] = backends.select(self._backend, part, name, differentiable, capturable)
        return self._addressing(*chosen[kind], tensors, name)

    def _addressing(
        self, backend: Backend, why: str, tensors: Iterable[Any], name: str
    ) -> tuple[Backend, str]:
        """The backend, or eager and the reason if a tensor keeps its memory in other tensors."""
        if backend.name == "eager":
            return backend, why
        for tensor in map(local, tensors):
            if isinstance(tensor, Tensor) and not has_own_memory(tensor):
                reason = (
                    f"its gradient or state has a {type(tensor).__name__}, which keeps its memory "
                    "in other tensors"
                )
                if self._backend != "auto":
                    raise RuntimeError(f"backend={backend.name!r} cannot step {name}: {reason}")
                return backends.BACKENDS["eager"], reason
        return backend, why

    def _counts_on_device(self, group: dict[str, Any], state: State) -> bool:
        """Whether the device counts the steps of a parameter, if its backend can."""
        step = state.get("step")
        # A counter stays where the user has put it.
        is_there = isinstance(step, Tensor) and step.device.type != "cpu"
        return self._options.counts_on_device(group) or is_there

    def _home(self, param: Tensor) -> tuple[FlatBuffer, Slot] | None:
        """The buffer and the slot of a parameter, or None if it lies in no flat buffer."""
        found = (flat.find(param) for flat in self._flat_groups)
        return next((home for home in found if home is not None), None)


def _has_values(param: Tensor) -> bool:
    """Whether a step of a parameter computes anything."""
    return not (param.is_meta or isinstance(param, FakeTensor))
