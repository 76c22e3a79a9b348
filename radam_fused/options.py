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
    """The part of a step that an option affects."""

    COEFFICIENTS = "the coefficients of the update"
    PLAN = "the launch of a parameter"
    STATE = "the creation of a parameter's state"
    NOTHING = "nothing"


class Option(NamedTuple):
    """One option.

    Attributes:
        name: Its key in a parameter group.
        default: Its default.
        feeds: The part of a step that it affects.
        doc: Its documentation.
        check: Returns the error message for a value, given the whole group; None if it is valid.
        is_ours: Whether torch.optim.RAdam lacks it. A group holds such an option only if its value
            is not the default: torch.distributed.checkpoint exchanges state with torch.optim.RAdam
            only if the groups have the same keys.
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
    # Below, the variance that r_t divides by is infinite.
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

# First the options of torch.optim.RAdam, in the order of its groups.
OPTIONS = (
    _torchs(
        "lr",
        1e-3,
        _NUMBERS,
        "Learning rate: a number, or a tensor of one element that every step reads.",
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
    _torchs("foreach", None, Feeds.NOTHING, "Ignored; accepted for compatibility with torch."),
    _torchs(
        "capturable",
        False,
        _PLAN,
        "Count the steps on the device, so that a CUDA graph can capture a step. A replay "
        "reads the values of the gradients and, if it is a tensor on the device, of the learning "
        "rate. It uses the other options of the time of the capture, as with torch's optimizers. "
        "Keep the optimizer as long as the graph.",
    ),
    _torchs(
        "decoupled_weight_decay",
        False,
        _NUMBERS,
        "Multiply the parameter by ``1 - lr * weight_decay`` as AdamW does, instead of adding "
        "``weight_decay`` times the parameter to the gradient (L2).",
    ),
    _torchs(
        "differentiable", False, _PLAN, "Let autograd record the step. Requires the eager backend."
    ),
    Option(
        "amsgrad",
        False,
        _PLAN,
        "Divide by the root of the running maximum of the second moment (arXiv 1904.09237). The "
        "state holds it as ``max_exp_avg_sq``.",
    ),
    Option(
        "rectify",
        True,
        _NUMBERS,
        "Multiply the adaptive rate by r_t. False makes every step adaptive; with "
        "``eps_after_bias_correction=True``, this is Adam, AdamW or AMSGrad.",
    ),
    Option(
        "rectify_threshold",
        5.0,
        _NUMBERS,
        "A step is rectified if rho_t is greater. At least 4, or at least 2 with "
        "``exact_rectification``.",
        _check_threshold,
    ),
    Option(
        "exact_rectification",
        False,
        _NUMBERS,
        "Compute r_t from the exact variance of the adaptive rate (Theorem 1) instead of its "
        "first-order approximation, which is 3.3 times too high at ``rho_t = 5``. Early rectified "
        "steps become larger; with a lower threshold they begin earlier.",
    ),
    Option(
        "degenerated_to_sgd",
        True,
        _NUMBERS,
        "A step that is not rectified is SGD with bias-corrected momentum. False: it is skipped.",
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
        "Apply decoupled decay also in skipped steps.",
    ),
    Option(
        "moments_in_param_dtype",
        False,
        Feeds.STATE,
        "Keep the moments of bfloat16 and float16 parameters in the parameter's dtype, as torch "
        "does. By default they are float32: at ``betas[1]=0.999``, a bfloat16 second moment cannot "
        "decay. A loaded state_dict keeps the dtype of its moments.",
    ),
)

DEFAULTS: dict[str, Any] = {option.name: option.default for option in OPTIONS}
OURS = tuple(option.name for option in OPTIONS if option.is_ours)
COEFFICIENTS = tuple(option.name for option in OPTIONS if option.feeds is Feeds.COEFFICIENTS)
PLAN = tuple(option.name for option in OPTIONS if option.feeds is Feeds.PLAN)

# The options of the coefficients as a vector of float64, in the order of csrc/options.def.
OPTION_NAMES = (
    "lr",
    "beta1",
    "beta2",
    *(name for name in COEFFICIENTS if name not in ("lr", "betas")),
)


def get(group: Group, name: str) -> Any:
    """The value of an option; the default if the group leaves it out."""
    return group[name] if name in group else DEFAULTS[name]


def group_defaults(values: Group) -> dict[str, Any]:
    """The options that a group holds: those of torch, and changed ones that torch lacks."""
    return {
        name: value
        for name, value in ((name, values[name]) for name in DEFAULTS)
        if name not in OURS or value != DEFAULTS[name]
    }


def check(group: Group) -> None:
    """Check the options of a group. Messages are those of torch where torch checks the option.

    Raises:
        ValueError: A value is out of range.
    """
    for option in OPTIONS:
        message = option.check(get(group, option.name), group)
        if message is not None:
            raise ValueError(message)


def planned(group: Group) -> tuple[Any, ...]:
    """The values of the options that determine the launch of a parameter."""
    return tuple(get(group, name) for name in PLAN)


def coefficient_arguments(group: Group) -> dict[str, Any]:
    """The arguments of :func:`radam_fused.rectification.coefficients` from a group.

    A tensor learning rate becomes a number, or a float64 tensor if the step is differentiable.
    """
    arguments = {name: get(group, name) for name in COEFFICIENTS}
    lr = arguments["lr"]
    if isinstance(lr, Tensor):
        arguments["lr"] = lr.double().squeeze() if group["differentiable"] else lr.item()
    return arguments


def _stacklevel_of_user() -> int:
    """The stacklevel of the first caller outside of torch and this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in (__package__, "torch"):
        frame, level = frame.f_back, level + 1
    return level


def warn_if_never_rectified(group: Group) -> None:
    """Warn if ``betas[1]`` is so small that no step is rectified."""
    beta2, threshold = group["betas"][1], get(group, "rectify_threshold")
    if get(group, "rectify") and rho_inf(beta2) <= threshold:
        fallback = "SGD with momentum" if get(group, "degenerated_to_sgd") else "skipped"
        warnings.warn(
            f"no step is ever rectified: betas[1]={beta2} gives rho_inf={rho_inf(beta2):.4g}, "
            f"expected more than rectify_threshold={threshold:.4g}; every step is {fallback}",
            stacklevel=_stacklevel_of_user(),
        )


Documented = TypeVar("Documented")


def documents(names: Sequence[str]) -> Callable[[Documented], Documented]:
    """A decorator that replaces ``{options}`` in a docstring by the documentation of options."""

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
