"""Loading a state_dict: what must hold before, and what torch's load_state_dict leaves to mend."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .allocation import numbers_of
from .caller import warn_user
from .conversions import check_conversion
from .formats import format_of
from .groups import Groups, name_of, params_of
from .option_sets import OptionSet
from .options import Group
from .state import (
    ELEMENTWISE,
    MASTERS,
    MOMENTS,
    REQUIRED,
    can_step,
    check_count,
    check_moment_shape,
    check_step,
    counter_dtype,
    expected_dtypes,
    is_readable,
)
from .tensors import check_writable, describe

# The place of the step counters, which the constructor decides.
_FIXED = ("capturable", "fused")

# Every optimizer of the family has them, and no other one has all of them.
_FAMILY = ("lr", "betas", "eps")


def check_state_dict(state_dict: Mapping[str, Any], groups: Groups, options: OptionSet) -> None:
    """Check that a state_dict fits an optimizer.

    Args:
        state_dict: The state_dict.
        groups: The optimizer's parameter groups.
        options: The options of the optimizer's class.

    Raises:
        KeyError: A part, or a tensor of a state, is missing.
        TypeError: A part has the wrong type.
        ValueError: It is of another kind of optimizer, or has other groups or shapes; or an option
            or a step count is out of range.
        RuntimeError: Options exclude each other.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise KeyError(f"state_dict has no {key!r}, expected that of an optimizer")
    saved_groups, saved_states = state_dict["param_groups"], state_dict["state"]
    _check_type("param_groups of the state_dict", saved_groups, Sequence, "a list of dicts")
    _check_type("state of the state_dict", saved_states, Mapping, "a dict")
    if len(saved_groups) != len(groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_groups)}, expected {len(groups)}"
        )
    counts: list[tuple[str, Tensor]] = []
    for index, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        name = f"parameter group {index} of the state_dict"
        _check_type(name, saved, Mapping, "a dict")
        missing = [key for key in ("params", *_FAMILY) if key not in saved]
        if missing:
            raise ValueError(
                f"{name} has no {missing[0]!r}, expected the state_dict of {options.name} or of "
                f"a relative; it has {', '.join(map(str, saved))}"
            )
        final = dict(saved)
        complete_options(final, group, options, loaded=True)
        options.check(final, index)
        params, ids = params_of(group), saved["params"]
        _check_type(f"params of {name}", ids, Sequence, "a list of indices")
        if len(ids) != len(params):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: group {index} has {len(ids)} parameters, expected "
                f"{len(params)}"
            )
        for i, (param, saved_id) in enumerate(zip(params, ids, strict=True)):
            _check_type(f"an index of {name}", saved_id, Hashable, "a number")
            state, param_name = saved_states.get(saved_id, {}), name_of(groups, (index, i))
            _check_saved(param, state, param_name)
            if not is_lazy(param) and can_step(param):
                wanted = format_of(param, final, options).moments
                check_conversion(state, wanted, f" of {param_name}", " in the state_dict")
            if is_readable(state.get("step")):
                counts.append((param_name, state["step"]))
    if counts:
        read = torch.stack([step.detach().reshape(()).double() for _, step in counts]).tolist()
        for (name, _), count in zip(counts, read, strict=True):
            check_count(count, name)


def _check_type(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {describe(value)}, expected {expected}")


def _check_saved(param: Tensor, state: Any, name: str) -> None:
    """Check the saved state of a parameter. Loading casts it, and moves it to the device."""
    _check_type(f"state of {name}", state, Mapping, f"a dict with {', '.join(REQUIRED)}")
    # A frozen parameter can have a state of the user's.
    for key in REQUIRED if any(key in state for key in REQUIRED) else ():
        if key not in state:
            raise KeyError(
                f"state of {name} has no {key!r}, expected {', '.join(REQUIRED)}; the state_dict "
                f"has {', '.join(map(str, state))}"
            )
    if "step" in state:
        check_step(state["step"], name)
        _check_value(param, state["step"], f"step of {name}")
    for key in ELEMENTWISE:
        if key in state and not is_lazy(param):
            moment, what = state[key], f"{key} of {name}"
            check_moment_shape(param, moment, what)
            check_writable(moment, what)
            _check_value(param, moment, what)
            own = expected_dtypes(param, state, key) if key in MASTERS else ()
            if (own and moment.dtype not in own) or (
                not own and moment.is_complex() != param.is_complex()
            ):
                expected = own[0] if own else param.dtype
                raise ValueError(f"{what} has dtype {moment.dtype}, expected {expected}")


def _check_value(param: Tensor, saved: Any, name: str) -> None:
    if isinstance(saved, Tensor) and saved.is_meta and not param.is_meta:
        raise ValueError(f"{name} is on meta, expected a tensor with values")


def rename_options(group: dict[str, Any]) -> dict[str, Any]:
    """Give the options of a group, which is returned, the names of this version."""
    if group.pop("moments_in_param_dtype", False):  # of version 0.1
        group["moments"] = "param"
    return group


def complete_options(
    group: dict[str, Any], before: Group, options: OptionSet, loaded: bool
) -> None:
    """Give a loaded or copied group the options that it lacks.

    Args:
        group: The group.
        before: The group that it replaces, or the defaults of the optimizer. An option that torch
            lacks keeps its value if the new group lacks it.
        options: The options of the optimizer's class.
        loaded: Whether the group is from a state_dict: the place of its step counters is then that
            of the group that it replaces.
    """
    rename_options(group)
    for name in options.of_torch:
        group.setdefault(name, options.defaults[name])
    for name in options.ours:
        if name in before:
            group.setdefault(name, before[name])
    for name in _FIXED if loaded else ():
        group[name] = options.get(before, name)


def restore_loaded(
    groups: Sequence[dict[str, Any]],
    states: dict[Tensor, Any],
    state_dict: dict[str, Any],
    options: OptionSet,
) -> None:
    """Undo two effects of torch's load_state_dict on a state.

    torch casts the tensors of a state to the parameter's dtype. It also shares the step counters
    with the state_dict, so that the optimizer it came from would go on changing them.

    Args:
        groups: The parameter groups, after loading.
        states: The state, after loading.
        state_dict: The state_dict that was loaded.
        options: The options of the optimizer's class.
    """
    shared = defaultdict(list)
    for group, saved_group in zip(groups, state_dict["param_groups"], strict=True):
        for param, saved_id in zip(group["params"], saved_group["params"], strict=True):
            saved = state_dict["state"].get(saved_id, {})
            state = states.get(param, {})
            step = state.get("step")
            if isinstance(step, Tensor) and step is saved.get("step") and step.numel() == 1:
                dtype = step.dtype if step.dtype.itemsize >= 4 else counter_dtype()
                shared[step.device, step.dtype, dtype].append(state)
            if is_lazy(param) or not can_step(param):
                continue
            moments = format_of(param, group, options).moments
            for key in ELEMENTWISE:
                if key in saved:
                    dtype = moments if key in MOMENTS else saved[key].dtype
                    state[key] = saved[key].to(device=param.device, dtype=dtype)
    for (*_, dtype), alike in shared.items():
        steps = torch.stack([state["step"].reshape(()) for state in alike]).to(dtype)
        for state, number in zip(alike, numbers_of(steps), strict=True):
            state["step"] = number


def warn_of_differences(before: Groups, saved: Groups, after: Groups, options: OptionSet) -> None:
    """Warn where options that the counterpart in torch.optim lacks differed from a state_dict's.

    Args:
        before: The groups before the state_dict was loaded.
        saved: The groups of the state_dict.
        after: The groups now.
        options: The options of the optimizer's class.
    """
    get = options.get
    differences = [
        f"group {index} had {name}={get(own, name)!r}, the state_dict has "
        f"{get(theirs, name)!r}, and {get(after[index], name)!r} holds"
        for index, (own, theirs) in enumerate(zip(before, saved, strict=True))
        for name in options.differences(own, theirs)
    ]
    if differences:
        warn_user("options differ: " + "; ".join(differences))
