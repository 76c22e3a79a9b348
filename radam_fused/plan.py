"""The plan of a step: which launch updates each parameter, kept while it fits the tensors."""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import backends
from .allocation import New, complete_states, move_counters, new, take_over_layout
from .backends import (
    Backend,
    Groups,
    Kind,
    Launch,
    Place,
    Step,
    TableLaunch,
    name_of,
    params_of,
)
from .extension import _C
from .flat import FlatBuffer, FlatGroup, Slot
from .options import OptionSet
from .overlap import Range, extent, first_overlap
from .state import MOMENTS, State, check_grad, check_param, check_state, has_own_memory

States = MutableMapping[Tensor, Any]


class Launches:
    """The launches of a step. All of them read, then all compute, then all run."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, Kind], Launch] = {}

    def __len__(self) -> int:
        return len(self._by_kind)

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
        counts_on_device: bool = False,
        slot: Slot | None = None,
    ) -> None:
        """Add a parameter to the launch of its kind.

        Its moments get the memory order of the parameter; each stays the same object.

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

    def have_moved(self) -> bool:
        """Whether a tensor that the step writes lies at another address than at the last step."""
        return any(launch.has_moved() for launch in self._by_kind.values())

    def misfit(self) -> tuple[Place, str]:
        """The place of a parameter that does not fit its launch, and the name of its tensor."""
        return next(found for found in (launch.misfit() for launch in self) if found[1])

    def compute(self, step: Step) -> None:
        """Compute every launch. Writes nothing."""
        for launch in self._by_kind.values():
            launch.compute(step)

    def run(self) -> None:
        """Run every launch."""
        for launch in self._by_kind.values():
            launch.run()

    def release(self) -> None:
        """Release every tensor that was read, without a step."""
        for launch in self._by_kind.values():
            launch.release()


def are_apart(launches: Launches, groups: Groups, states: States) -> bool:
    """Check that no two tensors that the step writes overlap in memory.

    Returns:
        False if a parameter has come to stand at the place of another one that is stepped.

    Raises:
        ValueError: Two tensors overlap; the message names both.
    """
    tables = [launch.table for launch in launches if isinstance(launch, TableLaunch)]
    if len(tables) == len(launches) and _C.TensorTable.are_apart(tables):
        return True
    dense, gapped = [], []
    params = [params_of(group) for group in groups]
    known: dict[int, Place] = {}
    for launch in launches:
        for place, role, first, end in launch.written_ranges():
            param = params[place[0]][place[1]]
            if known.setdefault(id(param), place) != place:
                return False
            tensor = param if role == "param" else states[param][role]
            name = name_of(groups, place)
            name = name if role == "param" else f"{role} of {name}"
            if end > 0:
                dense.append(Range(str(tensor.device), first, end, name, tensor))
            else:
                gapped.append(extent(tensor, name))
    overlap = first_overlap(dense, gapped)
    if overlap is not None:
        one, other = overlap
        raise ValueError(f"{other} overlaps {one} in memory, expected separate tensors")
    return True


class _Planned(NamedTuple):
    """A parameter on its way into a launch."""

    place: Place
    param: Tensor
    grad: Tensor
    new: New
    backend: Backend
    home: tuple[FlatBuffer, Slot] | None
    counts_on_device: bool


class Plan:
    """Assigns parameters to launches at their first gradient, and again after a change.

    Args:
        backend: The backend's name, or "auto".
        options: The options of the optimizer's class.
        flat_groups: The flat buffers of each parameter group; empty without them.
        graph_launches: Launches of earlier plans whose memory captured graphs still use.

    Attributes:
        launches: The launches of the planned parameters.
    """

    def __init__(
        self,
        backend: str,
        options: OptionSet,
        flat_groups: Sequence[FlatGroup] = (),
        graph_launches: Sequence[Launch] = (),
    ) -> None:
        self.launches = Launches()
        self._backend = backend
        self._options = options
        self._flat_groups = flat_groups
        self._graph_launches = graph_launches
        self._waiting: Any = None  # parameters in no launch yet; None: nothing is planned
        self._numbers: Any = None  # the options of the groups, as numbers
        self._planned: list[tuple[Any, ...]] = []  # of each group, the options of the plan
        self._added: list[tuple[Tensor, State, set[str], bool]] = []  # to states, in this step

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
        """Run one step. An error before the launches run leaves all tensors and states unchanged.

        Args:
            groups: The optimizer's parameter groups.
            states: The optimizer's state.
            grad_scale: The scale that the gradients were multiplied by, or None.
            found_inf: Nonzero if a gradient overflowed; the step is then skipped.
        """
        try:
            self._read(groups, states)
            capturing = backends.is_capturing()
            step = Step(groups, self._options, self._numbers, grad_scale, found_inf, capturing)
            self.launches.compute(step)
        except BaseException:
            self._remove_added(states)
            self._added = []
            raise
        self._added = []
        self.launches.run()
        if self._numbers is not None:
            self._numbers.release()

    def _remove_added(self, states: States) -> None:
        for param, state, names, is_new in self._added:
            for name in names:
                del state[name]
            if is_new and states.get(param) is state:
                del states[param]

    def _read(self, groups: Groups, states: States) -> None:
        """Read the tensors of the step; plans first if they no longer fit the plan."""
        if not (self._fits(groups, states) and self.launches.read(groups, states)):
            self._plan_all(groups, states)
            self._read_planned(groups, states)
        if self.launches.have_moved() and not are_apart(self.launches, groups, states):
            self._plan_all(groups, states)
            self._read_planned(groups, states)

    def _read_planned(self, groups: Groups, states: States) -> None:
        if not self.launches.read(groups, states):
            place, tensor = self.launches.misfit()
            raise RuntimeError(
                f"{tensor} of {name_of(groups, place)} changed while the step was prepared"
            )

    def _fits(self, groups: Groups, states: States) -> bool:
        """Whether the plan still holds; adds parameters with a first gradient to it."""
        if self._waiting is None:
            return False
        for index in self._numbers.read(groups):
            self._options.check(groups[index])
            planned = self._planned[index] if index < len(self._planned) else None
            if planned != self._options.planned(groups[index]):
                return False
        late = self._waiting.take(groups)
        if late:
            self._add(late, groups, states)
        return late is not None

    def _plan_all(self, groups: Groups, states: States) -> None:
        """Plan every parameter that has a gradient, in new launches."""
        self.launches.release()
        self._graph_launches, self.launches = self.graph_launches(), Launches()
        self._waiting = None
        for group in groups:
            self._options.check(group)
        self._planned = [self._options.planned(group) for group in groups]
        self._numbers = backends.new_numbers(self._options)
        if _C is None:  # only eager is available; every step plans
            self._add(_with_gradient(groups), groups, states)
            return
        self._numbers.read(groups)
        waiting = _C.Waiting(groups)
        self._add(waiting.take(groups), groups, states)
        self._waiting = waiting

    def _add(self, places: Sequence[Place], groups: Groups, states: States) -> None:
        """Check parameters, complete their states, and add them to launches."""
        found = self._check(places, groups, states)
        capturable = (groups[group]["capturable"] for group, _ in places)
        if any(capturable) and backends.is_capturing():
            raise RuntimeError(
                "cannot capture this step: it allocates state. Run one step after any change, then "
                "capture"
            )
        before = [set(it.new.state) for it in found]
        complete_states([it.new for it in found])
        for it, names in zip(found, before, strict=True):
            is_new = states.get(it.param) is None
            self._added.append((it.param, it.new.state, set(it.new.state) - names, is_new))
        move_counters(
            (
                it.new.state,
                it.param.device if it.counts_on_device else it.new.counter_device,
                it.new.counter_dtype,
            )
            for it in found
            if it.backend.name != "eager" or not isinstance(it.new.state["step"], Tensor)
        )
        for it in found:
            moments = [name for name in it.new.names if name in MOMENTS]
            slot = None
            if it.home is not None:
                buffer, slot = it.home
                slot.bring_back()
                buffer.take_over(slot, it.new.state, moments)
            self.launches.add(
                it.place,
                it.param,
                it.grad,
                it.new.state,
                moments,
                it.backend,
                it.counts_on_device,
                slot,
            )
        # Last, so that an error leaves no new state behind.
        for it in found:
            if states.get(it.param) is None:
                states[it.param] = it.new.state

    def _check(self, places: Sequence[Place], groups: Groups, states: States) -> list[_Planned]:
        """Check parameters with their gradients and states, and choose a backend for each."""
        found = []
        chosen: dict[tuple[Any, ...], Backend] = {}
        params = [params_of(group) for group in groups]
        for place in places:
            group = groups[place[0]]
            param, name = params[place[0]][place[1]], name_of(groups, place)
            grad, state = param.grad, states.get(param)
            if grad is None:
                raise RuntimeError(f"grad of {name} changed while the step was prepared")
            if self._options.get(group, "fused") and param.is_meta:
                raise RuntimeError(
                    "`fused=True` requires all the params to be floating point Tensors of "
                    f"supported devices, but {name} is on meta"
                )
            check_param(param, name)
            check_grad(param, grad, name, self._options.name)
            if state:
                check_state(param, state, name)
            home = self._home(param)
            if home is not None:
                home[1].check(name)
            differentiable, capturable = group["differentiable"], group["capturable"]
            kind = type(param), param.device, differentiable, capturable
            if kind not in chosen:
                chosen[kind] = backends.select(
                    self._backend, param, name, differentiable, capturable
                )
            state = {} if state is None else state
            backend = self._addressing(chosen[kind], (grad, *state.values()), name)
            needs = new(param, state, group, self._options)
            on_device = backend.supports_capturable and self._counts_on_device(group, state)
            found.append(_Planned(place, param, grad, needs, backend, home, on_device))
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


def _with_gradient(groups: Groups) -> list[Place]:
    """The first place of every parameter that has a gradient."""
    places: dict[int, Place] = {}
    for g, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            if param.grad is not None:
                places.setdefault(id(param), (g, i))
    return list(places.values())
