"""What torch's optimizers keep behind `_init_group`, which other libraries call."""

from typing import Any

from torch import Tensor

from .allocation import complete_states, new
from .base import FusedOptimizer
from .groups import params_of


def collect(
    optimizer: FusedOptimizer,
    group: dict[str, Any],
    params_with_grad: list[Tensor],
    grads: list[Tensor],
    **lists: list[Tensor],
) -> bool:
    """Complete the states of a group, and append its tensors to lists, as torch's _init_group.

    Args:
        optimizer: The optimizer.
        group: A parameter group.
        params_with_grad: Receives the parameters that have a gradient.
        grads: Receives their gradients.
        **lists: Receive the tensors of their states, by key.

    Returns:
        Whether a parameter is complex.
    """
    found, options = [], optimizer._options
    for param in params_of(group):
        if param.grad is not None:
            if param.grad.is_sparse:
                raise RuntimeError(f"{options.name} does not support sparse gradients")
            state = optimizer.state.setdefault(param, {})
            found.append(new(param, state, group, options))
    complete_states(found)
    for it in found:
        params_with_grad.append(it.param)
        grads.append(it.param.grad)  # type: ignore[arg-type]
        for key in it.format.names:
            if key in lists:
                lists[key].append(it.state[key])
    return any(it.param.is_complex() for it in found)
