"""Conversions of a state between stored formats, and the float32 values of 16-bit parameters."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from .dtensors import local
from .groups import States
from .rounding import join, master_of, split
from .state import MASTERS, MOMENTS, State, is_narrow


class Before(NamedTuple):
    """A parameter and its state before they are converted.

    Attributes:
        param: The parameter.
        state: Its state.
        tensors: The tensors of the state.
        is_new: Whether the optimizer has no state of the parameter yet.
        value: A copy of the local parameter, if a conversion of its master can change it.
    """

    param: Tensor
    state: State
    tensors: State
    is_new: bool
    value: Tensor | None

    @classmethod
    def of(cls, param: Tensor, state: State, names: Collection[str], is_new: bool) -> "Before":
        """A parameter whose state is to have some tensors."""
        wanted, found = set(MASTERS) & set(names), set(MASTERS) & set(state)
        value = local(param).detach().clone() if wanted - found and found else None
        return cls(param, state, dict(state), is_new, value)

    @torch.no_grad()
    def restore(self, states: States) -> None:
        """Undo every conversion, and remove a new state from those of the optimizer."""
        if self.is_new and states.get(self.param) is self.state:
            del states[self.param]
        self.state.clear()
        self.state.update(self.tensors)
        if self.value is not None:
            local(self.param).detach().copy_(self.value)


def check_conversion(state: State, dtype: torch.dtype, of: str = "", where: str = "") -> None:
    """Check that the moments of a state have a dtype, or can get it.

    A conversion to 16 bits would round. Any other one is done.

    Args:
        state: The state.
        dtype: The dtype.
        of: Whose state it is, for the message.
        where: Where the state is, for the message.

    Raises:
        ValueError: A moment would be rounded to 16 bits.
    """
    for key in MOMENTS if dtype.itemsize == 2 else ():
        if key in state and state[key].dtype != dtype:
            had, needs = (str(d).removeprefix("torch.") for d in (state[key].dtype, dtype))
            raise ValueError(
                f"{key}{of} is {had}{where}, expected {needs}: a conversion would round. Convert "
                f"it with .to(torch.{needs}) if that is meant, or use an optimizer with the "
                "moments of the state"
            )


def convert_moments(state: State, dtype: torch.dtype) -> None:
    """Give the moments of a state a dtype.

    Raises:
        ValueError: They would be rounded to 16 bits.
    """
    check_conversion(state, dtype)
    for key in MOMENTS:
        if key in state and state[key].dtype != dtype:
            state[key] = state[key].to(dtype)


def drop_masters(state: State, names: Collection[str]) -> None:
    """Remove the masters that a format does not have."""
    for key in MASTERS:
        if key not in names:
            state.pop(key, None)


def masters_of(state: State, names: Collection[str]) -> State:
    """The masters in a state that count in a format: all if it has one, which follows from them."""
    counts = any(key in names for key in MASTERS)
    return {key: state[key] for key in MASTERS if counts and key in state}


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
