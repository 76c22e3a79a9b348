"""The float32 values of 16-bit parameters, for users."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .allocation import complete_states, new
from .conversions import Before, masters_of, set_value, value_of
from .dtensors import (
    are_placed_alike,
    check_alike,
    is_dtensor,
    local,
    placed_like,
    redistribute,
)
from .formats import format_of
from .groups import params_of
from .option_sets import OptionSet
from .state import MASTERS, is_narrow


class Masters:
    """The base of an optimizer that can keep float32 values of 16-bit parameters."""

    param_groups: list[dict[str, Any]]
    state: Any
    _options: OptionSet

    @torch.no_grad()
    def master_params(self) -> Iterator[Tensor]:
        """The values that a step works with, for export: of each parameter, in order.

        Yields:
            For a bfloat16 or float16 parameter, a new float32 tensor: its master, or its value if
            it has none. Any other parameter itself, detached. That of a DTensor is a DTensor.
        """
        for group in self.param_groups:
            for param in params_of(group):
                if is_lazy(param) or not is_narrow(param):
                    yield param if is_lazy(param) else param.detach()
                    continue
                names = format_of(param, group, self._options).names
                masters = masters_of(self.state.get(param, {}), names)
                value = value_of(local(param).detach(), masters)
                yield placed_like(param, value) if is_dtensor(param) else value

    @torch.no_grad()
    def reset_masters(self, values: Iterable[Tensor] | None = None) -> None:
        """Set the masters of 16-bit parameters.

        Args:
            values: A value of each parameter, in the order of `master_params`. The parameters are
                set to them as well. That of a DTensor is a DTensor, of any placement. None: the
                masters become the values of the parameters, without the low bits of
                ``master_weights="split"``.

        Raises:
            TypeError: Only one of a parameter and its value is a DTensor.
            ValueError: There are fewer or more values than parameters, or one has another shape or
                mesh; or moments would be rounded.

            After an error, nothing has changed.
        """
        placed = [
            (param, group)
            for group in self.param_groups
            for param in params_of(group)
            if not is_lazy(param)
        ]
        given = None if values is None else _checked([p for p, _ in placed], list(values))
        # Frozen parameters get no state.
        members = [
            new(param, self.state.get(param, {}), group, self._options)
            for param, group in placed
            if is_narrow(param) and (param.requires_grad or param in self.state)
        ]
        owners = [it for it in members if set(it.format.names) & set(MASTERS)]
        before = [
            Before.of(it.param, it.state, it.format.names, it.param not in self.state)
            for it in owners
        ]
        try:
            complete_states(owners)
        except BaseException:
            for one in before:
                one.restore(self.state)
            raise
        for it in owners:
            self.state[it.param] = it.state
        for i, (param, _) in enumerate(placed):
            part = local(param).detach()
            if is_narrow(param):
                value = part if given is None else local(given[i]).detach()
                set_value(part, self.state.get(param, {}), value.float())
            elif given is not None:
                part.copy_(local(given[i]).detach())


def _checked(params: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Values of parameters, placed like them.

    Raises:
        TypeError: Only one of a parameter and its value is a DTensor.
        ValueError: There are fewer or more values than parameters, or one has another shape or
            mesh.
    """
    if len(values) != len(params):
        raise ValueError(f"values has {len(values)} tensors, expected {len(params)}")
    for i, (param, value) in enumerate(zip(params, values, strict=True)):
        if value.shape != param.shape:
            expected = tuple(param.shape)
            raise ValueError(f"value {i} has shape {tuple(value.shape)}, expected {expected}")
        check_alike(param, value, f"value {i}")
    moving = {
        i: (value, param)
        for i, (param, value) in enumerate(zip(params, values, strict=True))
        if is_dtensor(param) and not are_placed_alike(param, value)
    }
    moved = redistribute(moving)
    return [moved.get(i, value) for i, value in enumerate(values)]
