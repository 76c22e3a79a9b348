"""Conversions of a state between stored formats, and the float32 values of 16-bit parameters."""

import torch
from torch import Tensor

from .dtensors import local
from .rounding import join, master_of, split
from .state import MASTERS, MOMENTS, State, is_narrow


def convert_moments(state: State, dtype: torch.dtype) -> None:
    """Give the moments of a state a dtype."""
    for key in MOMENTS:
        if key in state and state[key].dtype != dtype:
            state[key] = state[key].to(dtype)


def value_of(param: Tensor, state: State) -> Tensor:
    """The value of a local parameter that a step works with, as float32 if it is a 16-bit one."""
    if "param_remainder" in state:
        return join(param, local(state["param_remainder"]))
    if "master_param" in state:
        return master_of(param, local(state["master_param"]))
    return param.float() if is_narrow(param) else param


def set_value(param: Tensor, state: State, value: Tensor) -> None:
    """Write the float32 value of a local 16-bit parameter into it and its master."""
    if "param_remainder" in state:
        high, low = split(value)
        param.copy_(high)
        local(state["param_remainder"]).copy_(low)
    else:
        param.copy_(value)
        if "master_param" in state:
            local(state["master_param"]).copy_(value)


@torch.no_grad()
def take_master(param: Tensor, state: State, key: str) -> None:
    """Fill a new master with the value of the parameter, or with that of one in another format.

    Args:
        param: The parameter.
        state: Its state.
        key: The key of the new master. Those of other formats are dropped.
    """
    others = {name: state.pop(name) for name in MASTERS if name != key and name in state}
    part = local(param).detach()
    set_value(part, state, value_of(part, others))
