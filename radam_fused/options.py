"""Every option of a parameter group, declared once."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from textwrap import fill, indent
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from .rectification import rho_inf

Group = Mapping[str, Any]


class Feeds(Enum):
    """What an option decides."""

    COEFFICIENTS = "the numbers that a step computes with"
    PLAN = "which launch steps a parameter"
    STATE = "how the state of a parameter is made"
    NOTHING = "nothing"


class Option(NamedTuple):
    """One option.

    Attributes:
        name: Its key in a parameter group.
        default: Its default.
        feeds: What it decides.
        doc: Its documentation.
        check: Returns the error message for a value that is out of range, given the whole group, or
            None.
        is_ours: Whether torch.optim.RAdam lacks it. A group holds such an option only where it is
            not at its default, because torch.distributed.checkpoint exchanges state with
            torch.optim.RAdam only if the keys of the groups are the same.
    """

    name: str
    default: Any
    feeds: Feeds
    doc: str
    check: Callable[[Any, Group], str | None] = lambda value, group: None
    is_ours: bool = True


def _check_lr(lr: Any, _: Group) -> str | None:
    if isinstance(lr, Tensor) and lr.numel() != 1:
        return "Tensor lr must be 1-element"
    return None if lr >= 0.0 else f"Invalid learning rate: {lr}"


def _check_betas(betas: Any, _: Group) -> str | None:
    for index, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            return f"Invalid beta parameter at index {index}: {beta}"
    return None


def _check_eps(eps: Any, _: Group) -> str | None:
    return None if eps >= 0.0 else f"Invalid epsilon value: {eps}"


def _check_weight_decay(decay: Any, _: Group) -> str | None:
    return None if decay >= 0.0 else f"Invalid weight_decay value: {decay}"


def _check_threshold(threshold: Any, group: Group) -> str | None:
    # Where the variance that r_t divides by becomes finite.
    least = 2.0 if get(group, "exact_rectification") else 4.0
    if threshold >= least:
        return None
    return f"Invalid rectify_threshold value: {threshold}, expected at least {least}"


def _check_absolute(absolute: Any, group: Group) -> str | None:
    if absolute and not group["decoupled_weight_decay"]:
        return "absolute_weight_decay=True requires decoupled_weight_decay=True"
    return None


_NUMBERS, _PLAN = Feeds.COEFFICIENTS, Feeds.PLAN
_torchs = partial(Option, is_ours=False)

# torch's first, in the order of its groups.
OPTIONS = (
    _torchs(
        "lr",
        1e-3,
        _NUMBERS,
        "Learning rate, a number or a tensor of one element, which is read at every step.",
        _check_lr,
    ),
    _torchs(
        "betas",
        (0.9, 0.999),
        _NUMBERS,
        "Decay rates of the first and the second moment, each in [0, 1).",
        _check_betas,
    ),
    _torchs("eps", 1e-8, _NUMBERS, "Term added to the denominator.", _check_eps),
    _torchs("weight_decay", 0, _NUMBERS, "Decay rate.", _check_weight_decay),
    _torchs("maximize", False, _NUMBERS, "Ascend instead of descend."),
    _torchs("foreach", None, Feeds.NOTHING, "Accepted for compatibility with torch and ignored."),
    _torchs(
        "capturable",
        False,
        _PLAN,
        "Count the steps on the device, so that a CUDA graph can capture a step. A replay sees new "
        "gradients and, if it is a tensor on the device, a new learning rate; every other option "
        "is as it was at the capture, as with torch's optimizers. Keep the optimizer as long as "
        "the graph.",
    ),
    _torchs(
        "decoupled_weight_decay",
        False,
        _NUMBERS,
        "Multiply the parameter by ``1 - lr * weight_decay`` (as AdamW) instead of adding "
        "``weight_decay`` times the parameter to the gradient (L2).",
    ),
    _torchs(
        "differentiable", False, _PLAN, "Let autograd record the step; runs the eager backend."
    ),
    Option(
        "amsgrad",
        False,
        _PLAN,
        "Divide by the root of the running maximum of the second moment (arXiv 1904.09237), kept "
        "as ``max_exp_avg_sq``.",
    ),
    Option(
        "rectify",
        True,
        _NUMBERS,
        "Multiply the adaptive rate by r_t. False makes every step adaptive: with "
        "``eps_after_bias_correction=True`` that is Adam, AdamW or AMSGrad.",
    ),
    Option(
        "rectify_threshold",
        5.0,
        _NUMBERS,
        "A step is rectified where rho_t is greater; at least 4, with ``exact_rectification`` at "
        "least 2.",
        _check_threshold,
    ),
    Option(
        "exact_rectification",
        False,
        _NUMBERS,
        "Take r_t from the exact variance of the adaptive rate (Theorem 1), not from its "
        "first-order approximation, which is 3.3 times too high at ``rho_t = 5``: the early "
        "rectified steps are larger, and with a lower threshold they begin earlier.",
    ),
    Option(
        "degenerated_to_sgd",
        True,
        _NUMBERS,
        "Step by the bias-corrected momentum where not rectified; False takes no step there.",
    ),
    Option(
        "eps_after_bias_correction",
        False,
        _NUMBERS,
        "Add eps to the root of the bias-corrected second moment.",
    ),
    Option(
        "absolute_weight_decay",
        False,
        _NUMBERS,
        "With decoupled decay, multiply by ``1 - weight_decay``.",
        _check_absolute,
    ),
    Option(
        "decay_skipped_steps",
        True,
        _NUMBERS,
        "Apply decoupled decay also where no step is taken.",
    ),
    Option(
        "moments_in_param_dtype",
        False,
        Feeds.STATE,
        "Keep the moments of bfloat16 and float16 parameters in their dtype, as torch does. By "
        "default they are float32: at ``betas[1]=0.999`` a bfloat16 second moment can no longer "
        "decay. Loading a state_dict keeps the dtype that they were saved in.",
    ),
)

DEFAULTS: dict[str, Any] = {option.name: option.default for option in OPTIONS}
OURS = tuple(option.name for option in OPTIONS if option.is_ours)
COEFFICIENTS = tuple(option.name for option in OPTIONS if option.feeds is Feeds.COEFFICIENTS)
PLAN = tuple(option.name for option in OPTIONS if option.feeds is Feeds.PLAN)

# The coefficients' options as a vector of float64; csrc/options.def has the same order.
OPTION_NAMES = (
    "lr",
    "beta1",
    "beta2",
    *(name for name in COEFFICIENTS if name not in ("lr", "betas")),
)


def get(group: Group, name: str) -> Any:
    """Value of an option in a group that may leave one of ours at its default."""
    return group[name] if name in group else DEFAULTS[name]


def group_defaults(values: Group) -> dict[str, Any]:
    """Options as a group holds them: torch's, and ours where they are not at their default."""
    return {
        name: value
        for name, value in ((name, values[name]) for name in DEFAULTS)
        if name not in OURS or value != DEFAULTS[name]
    }


def check(group: Group) -> None:
    """Check a group's options, with torch's messages where torch has one.

    Raises:
        ValueError: A value is out of range.
    """
    for option in OPTIONS:
        message = option.check(get(group, option.name), group)
        if message is not None:
            raise ValueError(message)


def planned(group: Group) -> tuple[Any, ...]:
    """The options that decide which launch steps a parameter."""
    return tuple(get(group, name) for name in PLAN)


def coefficient_arguments(group: Group) -> dict[str, Any]:
    """Arguments of :func:`radam_fused.rectification.coefficients` from a group.

    A tensor learning rate becomes a number, or a float64 tensor where the step is differentiable.
    """
    arguments = {name: get(group, name) for name in COEFFICIENTS}
    lr = arguments["lr"]
    if isinstance(lr, Tensor):
        arguments["lr"] = lr.double().squeeze() if group["differentiable"] else lr.item()
    return arguments


def _stacklevel_of_user() -> int:
    """Frames between the caller of this function and the first that is neither torch's nor ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in (__package__, "torch"):
        frame, level = frame.f_back, level + 1
    return level


def warn_if_never_rectified(group: Group) -> None:
    """Warn where ``betas[1]`` is so small that no step is ever rectified."""
    beta2, threshold = group["betas"][1], get(group, "rectify_threshold")
    if get(group, "rectify") and rho_inf(beta2) <= threshold:
        fallback = "SGD with momentum" if get(group, "degenerated_to_sgd") else "skipped"
        warnings.warn(
            f"no step is ever rectified: betas[1]={beta2} gives rho_inf={rho_inf(beta2):.4g}, not "
            f"above the threshold of {threshold:.4g}; every step is {fallback}",
            stacklevel=_stacklevel_of_user(),
        )


Documented = TypeVar("Documented")


def documents(names: Sequence[str]) -> Callable[[Documented], Documented]:
    """A decorator that writes the documentation of options where a docstring says ``{options}``."""

    def document(documented: Documented) -> Documented:
        text = documented.__doc__
        if text is not None:  # python -OO
            lines = [
                indent(fill(f"{o.name}: {o.doc}", 92, subsequent_indent="    "), " " * 8)
                for o in OPTIONS
                if o.name in names
            ]
            documented.__doc__ = text.replace("        {options}", "\n".join(lines))
        return documented

    return document
