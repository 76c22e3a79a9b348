"""The hyper-parameters of a parameter group: those of torch.optim.RAdam, and ours."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .rectification import rho_inf

# Ours, with their defaults. A group holds one only where it is set to something else: groups with
# torch.optim.RAdam's very keys are what torch.distributed.checkpoint exchanges with it.
OWN_DEFAULTS: dict[str, Any] = {
    "amsgrad": False,
    "rectify": True,
    "rectify_threshold": 5.0,
    "exact_rectification": False,
    "degenerated_to_sgd": True,
    "eps_after_bias_correction": False,
    "absolute_weight_decay": False,
    "decay_skipped_steps": True,
    "moments_in_param_dtype": False,
}

# What a step's coefficients are computed from.
COEFFICIENT_NAMES = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "decoupled_weight_decay",
    "maximize",
    "rectify",
    "rectify_threshold",
    "exact_rectification",
    "degenerated_to_sgd",
    "eps_after_bias_correction",
    "absolute_weight_decay",
    "decay_skipped_steps",
)


def option(group: Mapping[str, Any], name: str) -> Any:
    """Value of one of our options in a group that may leave it at its default."""
    return group.get(name, OWN_DEFAULTS[name])


def coefficient_arguments(group: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`radam_fused.rectification.coefficients` from a group.

    A tensor learning rate becomes a number, or a float64 tensor where the step is differentiable.
    """
    arguments = {
        name: group[name] if name in group else OWN_DEFAULTS[name] for name in COEFFICIENT_NAMES
    }
    lr = arguments["lr"]
    if isinstance(lr, Tensor):
        arguments["lr"] = lr.double().squeeze() if group["differentiable"] else lr.item()
    return arguments


def check(group: Mapping[str, Any]) -> None:
    """Check a group's hyper-parameters, with torch's messages where torch has one.

    Raises:
        ValueError: A value is out of range.
    """
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    beta1, beta2 = group["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    if not 0.0 <= beta1 < 1.0:
        raise ValueError(f"Invalid beta parameter at index 0: {beta1}")
    if not 0.0 <= beta2 < 1.0:
        raise ValueError(f"Invalid beta parameter at index 1: {beta2}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")
    check_own(group)


def planned_options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """The options that a step's launches are made for, or that check_own() looks at."""
    return (
        option(group, "amsgrad"),
        group["differentiable"],
        group["capturable"],
        option(group, "rectify_threshold"),
        option(group, "exact_rectification"),
        option(group, "absolute_weight_decay"),
        group["decoupled_weight_decay"],
    )


def check_own(group: Mapping[str, Any]) -> None:
    """Check what torch knows nothing of or leaves to the step; also once a group has changed.

    Raises:
        ValueError: An option of ours is out of range.
    """
    threshold = option(group, "rectify_threshold")
    # Where the variance that r_t divides by becomes finite.
    least = 2.0 if option(group, "exact_rectification") else 4.0
    if not threshold >= least:
        raise ValueError(f"Invalid rectify_threshold value: {threshold}, expected at least {least}")
    if option(group, "absolute_weight_decay") and not group["decoupled_weight_decay"]:
        raise ValueError("absolute_weight_decay=True requires decoupled_weight_decay=True")


def warn_if_never_rectified(group: Mapping[str, Any]) -> None:
    """Warn where ``betas[1]`` is so small that no step is ever rectified."""
    beta2, threshold = group["betas"][1], option(group, "rectify_threshold")
    if option(group, "rectify") and rho_inf(beta2) <= threshold:
        fallback = "SGD with momentum" if option(group, "degenerated_to_sgd") else "skipped"
        warnings.warn(
            f"no step is ever rectified: betas[1]={beta2} gives rho_inf={rho_inf(beta2):.4g}, not "
            f"above the threshold of {threshold:.4g}; every step is {fallback}",
            stacklevel=5,  # the line that makes the optimizer
        )
