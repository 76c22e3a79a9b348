"""How the tensors of a parameter are stored: their dtypes and rounding, from its options."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .elements import elements_of
from .groups import Groups, name_of, params_of
from .option_sets import OptionSet
from .options import Group
from .state import STATE, Role, arithmetic_dtype, can_step, is_narrow


class Format(NamedTuple):
    """How a step stores a parameter and its state.

    Attributes:
        names: Names of the tensors of the state.
        moments: Dtype of the moments.
        draws: The tensors that are rounded stochastically: ``param``, ``exp_avg_sq``, both or none.
    """

    names: tuple[str, ...]
    moments: torch.dtype
    draws: tuple[str, ...]


def format_of(param: Tensor, group: Group, options: OptionSet) -> Format:
    """The format of a parameter under the options of its group."""
    moments, arithmetic = options.get(group, "moments"), arithmetic_dtype(param)
    dtypes = {None: arithmetic, "param": param.dtype, "bfloat16": torch.bfloat16}
    names = tuple(
        field.name
        for field in STATE
        if field.option is None
        or (options.get(group, field.option) in field.values and _applies(field.role, param))
    )
    rounds_param = options.get(group, "stochastic_rounding") and param.dtype == torch.bfloat16
    draws = ("param",) * bool(rounds_param) + ("exp_avg_sq",) * (moments == "bfloat16")
    return Format(names, dtypes[moments], draws)


def _applies(role: Role, param: Tensor) -> bool:
    return role is not Role.MASTER or is_narrow(param)


def check_format(param: Tensor, name: str, group: Group, options: OptionSet) -> None:
    """Check that a parameter can be stored as the options of its group ask for.

    Raises:
        ValueError: Its dtype is none that an option supports.
    """
    found = str(param.dtype).removeprefix("torch.")

    def refuse(option: str, expected: str) -> ValueError:
        value = options.get(group, option)
        return ValueError(
            f"{option}={value!r} does not support {name} of {found}, expected {expected}"
        )

    narrow = "float32, bfloat16 or float16"
    if options.get(group, "moments") == "bfloat16" and not (
        is_narrow(param) or param.dtype == torch.float32
    ):
        raise refuse("moments", narrow)
    if param.dtype == torch.float16:
        if options.get(group, "master_weights") == "split":
            raise refuse("master_weights", "bfloat16 (master_weights='float32' supports float16)")
        if options.get(group, "stochastic_rounding"):
            raise refuse("stochastic_rounding", "bfloat16")


def check_parameters(groups: Groups, index: int, options: OptionSet) -> None:
    """Check that the parameters of a group can be stored as its options ask for.

    Frozen and uninitialized parameters are not looked at.

    Raises:
        ValueError: The dtype or the placements of a parameter are not supported.
    """
    group = groups[index]
    asked = "moments", "master_weights", "stochastic_rounding"
    if not any(options.get(group, name) for name in asked):
        return
    for i, param in enumerate(params_of(group)):
        if param.requires_grad and not is_lazy(param) and can_step(param):
            name = name_of(groups, (index, i))
            check_format(param, name, group, options)
            if format_of(param, group, options).draws:
                elements_of(param, (index, i), name, groups)
