"""Finds what a step could not read: groups, options or states that are not what they should be."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .groups import Groups, Place, name_of, params_of
from .option_sets import OptionSet
from .state import check_state
from .tensors import describe


def find_fault(groups: Any, states: Any, options: OptionSet) -> Exception | None:
    """The error of the first fault in the containers of an optimizer, or None.

    A step checks tensors before it uses them. Its look-ups in groups and states it only tries: the
    checks would cost as much as the step.

    Args:
        groups: The optimizer's ``param_groups``.
        states: The optimizer's ``state``.
        options: The options of the optimizer's class.
    """
    try:
        check_groups(groups, options)
        _check_states(groups, states)
    except Exception as error:
        return error
    return None


def check_groups(groups: Any, options: OptionSet) -> None:
    """Check the parameter groups of an optimizer.

    Raises:
        TypeError: Something is not a list, dict, tensor or number.
        KeyError: A group has no parameters.
        ValueError: An option is out of range.
        RuntimeError: Options exclude each other.
    """
    if not isinstance(groups, list):
        raise TypeError(f"param_groups is {describe(groups)}, expected a list of dicts")
    for index, group in enumerate(groups):
        name = f"parameter group {index}"
        if not isinstance(group, Mapping):
            raise TypeError(f"{name} is {describe(group)}, expected a dict")
        check_params(group, name)
        params = group["params"]
        if isinstance(params, Tensor):
            raise TypeError(f"params of {name} is {describe(params)}, expected a list of tensors")
        for i, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise TypeError(f"parameter {i} of {name} is {describe(param)}, expected a tensor")
        options.check(group, index)


def check_params(group: Mapping[str, Any], name: str) -> None:
    """Check that a group has something that can be its parameters.

    Raises:
        KeyError: It has no ``params``.
        TypeError: These cannot be iterated over, or are text.
    """
    if "params" not in group:
        raise KeyError(f"{name} has no 'params'")
    params = group["params"]
    if isinstance(params, str) or not isinstance(params, Iterable):
        raise TypeError(f"params of {name} is {describe(params)}, expected a list of tensors")


def _check_states(groups: Groups, states: Any) -> None:
    if not isinstance(states, Mapping):
        raise TypeError(f"the state is {describe(states)}, expected a dict")
    for index, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            if param in states and not isinstance(states[param], Mapping):
                check_state(param, states[param], name_of(groups, (index, i)))


def changed(groups: Groups, states: Any, place: Place, role: str) -> RuntimeError:
    """The error for a tensor that is another one than when it was checked.

    Args:
        groups: The optimizer's ``param_groups``.
        states: The optimizer's ``state``.
        place: Position of its parameter in the groups.
        role: "param", "grad" or its key in the state.
    """
    name, param = name_of(groups, place), params_of(groups[place[0]])[place[1]]
    now: Any
    if role == "param":
        what, now = name, param
    elif role == "grad":
        what, now = f"gradient of {name}", param.grad
    else:
        what, now = f"{role} of {name}", states[param].get(role)
    return RuntimeError(
        f"{what} changed while the step was prepared: it is now {describe(now)}, expected no "
        "change by another thread"
    )
