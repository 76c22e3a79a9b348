"""The parameters of an optimizer: their places in its groups, and their names."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

Place = tuple[int, int]  # index of a group, index of a parameter in it
Groups = Sequence[dict[str, Any]]
States = MutableMapping[Tensor, Any]


def params_of(group: Mapping[str, Any]) -> Sequence[Tensor]:
    """The parameters of a group, which can be any iterable."""
    params = group["params"]
    return params if isinstance(params, list | tuple) else list(params)


def given_name(groups: Groups, place: Place) -> str | None:
    """The name of a named parameter."""
    index, i = place
    names = groups[index].get("param_names")
    return names[i] if isinstance(names, Sequence) and i < len(names) else None


def name_of(groups: Groups, place: Place) -> str:
    """The name of a parameter in error messages."""
    name = given_name(groups, place)
    return f"parameter {place[1]} of group {place[0]}" if name is None else f"parameter {name!r}"


def with_gradient(groups: Groups) -> list[Place]:
    """The first place of every parameter that has a gradient."""
    places: dict[int, Place] = {}
    for g, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            if param.grad is not None:
                places.setdefault(id(param), (g, i))
    return list(places.values())
