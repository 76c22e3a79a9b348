"""The launches of a step, and that they write no memory twice."""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from .allocation import take_over_layout
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
from .flat import Slot
from .interrupts import deferred
from .overlap import Range, extent, first_overlap
from .state import State

States = MutableMapping[Tensor, Any]


class Launches:
    """The launches of a step. All of them read, then all compute, then all run."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, Kind], Launch] = {}
        self._is_atomic = True

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
            launch = self._by_kind[backend.name, kind] = backend.launch(kind)
            self._is_atomic = launch.is_atomic and len(self) == 1
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
        """Run every launch. Ctrl-C cannot leave some parameters updated and others not."""
        with nullcontext() if self._is_atomic else deferred():
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
    if tables and len(tables) == len(launches) and tables[0].are_apart(tables):
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
    check_apart(dense, gapped)
    return True


def check_apart(dense: Sequence[Range], gapped: Sequence[Range] = ()) -> None:
    """Check that tensors share no memory; the arguments are those of `first_overlap`.

    Raises:
        ValueError: Two tensors do; the message names both.
    """
    overlap = first_overlap(dense, gapped)
    if overlap is not None:
        one, other = overlap
        raise ValueError(f"{other} overlaps {one} in memory, expected separate tensors")
