"""The float32 values of 16-bit parameters, for users."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .allocation import complete_states, new
from .conversions import set_value, value_of
from .dtensors import is_dtensor, local, placed_like
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
        for param in (param for group in self.param_groups for param in params_of(group)):
            value = value_of(local(param).detach(), self.state.get(param, {}))
            yield placed_like(param, value) if is_dtensor(param) else value

    @torch.no_grad()
    def reset_masters(self, values: Iterable[Tensor] | None = None) -> None:
        """Set the masters of 16-bit parameters.

        Args:
            values: A value of each parameter, in the order of `master_params`. The parameters are
                set to them as well. None: the masters become the values of the parameters, without
                the low bits of ``master_weights="split"``.

        Raises:
            ValueError: There are fewer or more values than parameters, or one has another shape.
        """
        members = [
            new(param, self.state.get(param, {}), group, self._options)
            for group in self.param_groups
            for param in params_of(group)
        ]
        given = [local(it.param).detach() for it in members] if values is None else list(values)
        if len(given) != len(members):
            raise ValueError(f"values has {len(given)} tensors, expected {len(members)}")
        for i, (it, value) in enumerate(zip(members, given, strict=True)):
            if value.shape not in (it.param.shape, local(it.param).shape):
                expected = tuple(it.param.shape)
                raise ValueError(f"value {i} has shape {tuple(value.shape)}, expected {expected}")
        with_masters = [it for it in members if set(it.format.names) & set(MASTERS)]
        complete_states(with_masters)
        for it in with_masters:
            self.state[it.param] = it.state
        for it, value in zip(members, given, strict=True):
            part = local(it.param).detach()
            if is_narrow(part):
                set_value(part, it.state, local(value).detach().float())
            elif values is not None:
                part.copy_(local(value))
