"""Checks that a step writes no memory twice."""

from collections.abc import Sequence

from .backends import Launches, TableLaunch
from .groups import Groups, Place, States, name_of, params_of
from .overlap import Range, extent, first_overlap


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
