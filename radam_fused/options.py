"""Every option of a parameter group, declared once."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from enum import Enum
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

from torch import Tensor

from .rectification import rho_inf
from .values import Domain, decay_rates, flag, number

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
        domain: Its values.
    """

    name: str
    default: Any
    feeds: Feeds
    doc: str
    domain: Domain


def _flag(name: str, default: bool, feeds: Feeds, doc: str) -> Option:
    return Option(name, default, feeds, doc, flag(name))


def _optional_flag(name: str, feeds: Feeds, doc: str) -> Option:
    return Option(name, None, feeds, doc, flag(name, or_none=True))


def _threshold_is_low(values: Group) -> Exception | None:
    # Below, the variance that r_t divides by is infinite.
    least = 2.0 if values["exact_rectification"] else 4.0
    threshold = values["rectify_threshold"]
    if threshold >= least:
        return None
    return ValueError(f"Invalid rectify_threshold value: {threshold}, expected at least {least:g}")


def _decay_is_absolute(values: Group) -> Exception | None:
    if values["absolute_weight_decay"] and not values["decoupled_weight_decay"]:
        return ValueError("absolute_weight_decay=True requires decoupled_weight_decay=True")
    return None


def _fused_is_excluded(values: Group) -> Exception | None:
    if values["fused"] and values["differentiable"]:
        return RuntimeError("`fused` does not support `differentiable`")
    if values["fused"] and values["foreach"]:
        return RuntimeError("`fused` and `foreach` cannot be `True` together.")
    return None


# Each returns the error of a combination of options, or None.
RULES = (_threshold_is_low, _decay_is_absolute, _fused_is_excluded)

_NUMBERS, _PLAN = Feeds.COEFFICIENTS, Feeds.PLAN

# First the options of torch.optim.RAdam, in the order of its groups.
OPTIONS = (
    Option(
        "lr",
        1e-3,
        _NUMBERS,
        "Learning rate: a number, or a tensor of one element that every step reads. A step with "
        "rate 0 changes no parameter, whatever the other options.",
        number("lr", "learning rate"),
    ),
    Option(
        "betas",
        (0.9, 0.999),
        _NUMBERS,
        "Decay rates of the first and the second moment, each in [0, 1).",
        decay_rates("betas"),
    ),
    Option(
        "eps",
        1e-8,
        _NUMBERS,
        "Term added to the denominator.",
        number("eps", "epsilon value"),
    ),
    Option("weight_decay", 0, _NUMBERS, "Decay rate.", number("weight_decay")),
    _flag("maximize", False, _NUMBERS, "Ascend instead of descend."),
    _optional_flag("foreach", Feeds.NOTHING, "Ignored; accepted for compatibility with torch."),
    _flag(
        "capturable",
        False,
        _PLAN,
        "Count the steps on the device, so that a CUDA graph can capture a step. A replay "
        "reads the values of the gradients and, if it is a tensor on the device, of the learning "
        "rate. It uses the other options of the time of the capture, as with torch's optimizers. "
        "Keep the optimizer as long as the graph.",
    ),
    _flag(
        "decoupled_weight_decay",
        False,
        _NUMBERS,
        "Multiply the parameter by ``1 - lr * weight_decay`` as AdamW does, instead of adding "
        "``weight_decay`` times the parameter to the gradient (L2).",
    ),
    _flag(
        "differentiable", False, _PLAN, "Let autograd record the step. Requires the eager backend."
    ),
    _optional_flag(
        "fused",
        _PLAN,
        "True: with `torch.amp.GradScaler`, the step itself divides the gradients by the "
        "scale and skips the update after an overflow; the step counters are on the devices of the "
        "parameters. None and False: the scaler unscales the gradients and skips the step, as with "
        "torch.optim.RAdam. It does not affect the choice of a backend.",
    ),
    _flag(
        "amsgrad",
        False,
        _PLAN,
        "Divide by the root of the running maximum of the second moment (arXiv 1904.09237). The "
        "state holds it as ``max_exp_avg_sq``.",
    ),
    _flag(
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
        number("rectify_threshold", finite=False),
    ),
    _flag(
        "exact_rectification",
        False,
        _NUMBERS,
        "Compute r_t from the exact variance of the adaptive rate (Theorem 1) instead of its "
        "first-order approximation, which is 3.3 times too high at ``rho_t = 5``. Early rectified "
        "steps become larger; with a lower threshold they begin earlier.",
    ),
    _flag(
        "degenerated_to_sgd",
        True,
        _NUMBERS,
        "A step that is not rectified is SGD with bias-corrected momentum. False: it is skipped.",
    ),
    _flag(
        "eps_after_bias_correction",
        False,
        _NUMBERS,
        "Add eps to the root of the bias-corrected second moment.",
    ),
    _flag(
        "absolute_weight_decay",
        False,
        _NUMBERS,
        "With decoupled decay, multiply by ``1 - weight_decay``, unless the learning rate is 0.",
    ),
    _flag(
        "decay_skipped_steps",
        True,
        _NUMBERS,
        "Apply decoupled decay also in skipped steps.",
    ),
    _flag(
        "moments_in_param_dtype",
        False,
        Feeds.STATE,
        "Keep the moments of bfloat16 and float16 parameters in the parameter's dtype, as torch "
        "does. By default they are float32: at ``betas[1]=0.999``, a bfloat16 second moment cannot "
        "decay. A loaded state_dict keeps the dtype of its moments.",
    ),
)

COEFFICIENTS = tuple(option.name for option in OPTIONS if option.feeds is Feeds.COEFFICIENTS)
NAMES = tuple(option.name for option in OPTIONS)
PLAN = tuple(option.name for option in OPTIONS if option.feeds is Feeds.PLAN)

# The options of the coefficients as a vector of float64, in the order of csrc/options.def.
OPTION_NAMES = (
    "lr",
    "beta1",
    "beta2",
    *(name for name in COEFFICIENTS if name not in ("lr", "betas")),
)


@cache
def _misspelled(key: Any) -> str | None:
    """The option whose name becomes `key` by one edit: a character more, less, other or swapped."""
    names = NAMES if isinstance(key, str) else ()
    return next((name for name in names if _are_one_edit_apart(key, name)), None)


def _are_one_edit_apart(a: str, b: str) -> bool:
    start = _common(a, b)
    a, b = a[start:], b[start:]
    end = _common(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    return max(len(a), len(b)) == 1 or (len(a) == 2 and a == b[::-1])


def _common(a: str, b: str) -> int:
    """The length of the common beginning of two strings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class OptionSet:
    """The options of an optimizer class.

    Args:
        name: Name of the class in torch.optim.
        of_torch: Keys of the parameter groups of the class in torch.optim, in their order. A group
            holds another option only if its value is not the default: torch.distributed.checkpoint
            exchanges state with torch.optim only if the groups have the same keys.
        defaults: Defaults that differ from those of the options.

    Attributes:
        name: The same name.
        of_torch: The same keys.
        defaults: The default of every option.
        ours: Names of the options that a group can leave out.
    """

    def __init__(self, name: str, of_torch: Sequence[str], **defaults: Any) -> None:
        self.name = name
        self.of_torch = tuple(of_torch)
        self.defaults: dict[str, Any] = {option.name: option.default for option in OPTIONS}
        self.defaults |= defaults
        self.ours = tuple(name for name in self.defaults if name not in self.of_torch)
        self._counts_on_device = False

    def get(self, group: Group, name: str) -> Any:
        """The value of an option; the default if the group leaves it out."""
        return group[name] if name in group else self.defaults[name]

    def is_default(self, group: Group, name: str) -> bool:
        """Whether an option has its default."""
        value, default = self.get(group, name), self.defaults[name]
        # False is not None: fused=False differs from its default.
        return bool(value == default) and (value is None) == (default is None)

    def group_defaults(self, values: Group) -> dict[str, Any]:
        """The options that a group holds: those of torch, and changed ones that torch lacks."""
        held = {name: values[name] for name in self.of_torch}
        changed = (n for n in self.ours if n in values and not self.is_default(values, n))
        return held | {name: values[name] for name in changed}

    def drop_defaults(self, group: dict[str, Any], keep: Group) -> None:
        """Remove the options that torch lacks and that have their default, except some."""
        for name in self.ours:
            if name in group and name not in keep and self.is_default(group, name):
                del group[name]

    def check(self, group: Group, index: int | None = None) -> None:
        """Check the options of a group. Messages begin as those of torch where it has one.

        Args:
            group: The group.
            index: Its index, which the message then names.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range.
            RuntimeError: Options exclude each other.
        """
        values = {name: self.get(group, name) for name in self.defaults}
        found = (option.domain(values[option.name]) for option in OPTIONS)
        error = next(filter(None, found), None)
        error = error or next(filter(None, (rule(values) for rule in RULES)), None)
        if error is not None:
            where = "" if index is None else f", in parameter group {index}"
            raise type(error)(f"{error}{where}")

    def warn_of_misspelled(self, group: Group, warned: set[str]) -> None:
        """Warn of keys that are not options, but nearly the name of one.

        Args:
            group: The group.
            warned: Keys that need no warning; those of this warning are added.
        """
        for key in group:
            meant = None if key in self.defaults or key in warned else _misspelled(key)
            if meant is not None:
                warned.add(key)
                warn_user(
                    f"a parameter group has {key!r}, which is not an option and has no effect; "
                    f"did you mean {meant!r}?"
                )

    def planned(self, group: Group) -> tuple[Any, ...]:
        """The values of the options that determine the launch of a parameter."""
        return tuple(self.get(group, name) for name in PLAN)

    def differences(self, group: Group, other: Group) -> list[str]:
        """Names of options that torch lacks, change updates, and differ between two groups."""
        updating = (n for n in self.ours if n in COEFFICIENTS or n == "amsgrad")
        return [name for name in updating if self.get(group, name) != self.get(other, name)]

    def counting_on_device(self) -> "OptionSet":
        """The same options, with the step counters of every group on its parameters' devices."""
        other = copy(self)
        other._counts_on_device = True
        return other

    def counts_on_device(self, group: Group) -> bool:
        """Whether the step counters of a group are on the devices of its parameters."""
        return self._counts_on_device or bool(
            self.get(group, "capturable") or self.get(group, "fused")
        )

    def coefficient_arguments(self, group: Group) -> dict[str, Any]:
        """The arguments of `radam_fused.rectification.coefficients` from a group.

        A tensor learning rate becomes a number, or a float64 tensor if the step is differentiable.
        """
        arguments = {name: self.get(group, name) for name in COEFFICIENTS}
        for name in ("lr", "eps", "weight_decay", "rectify_threshold"):
            if not isinstance(arguments[name], Tensor):
                arguments[name] = float(arguments[name])
        arguments["betas"] = tuple(float(beta) for beta in arguments["betas"])
        lr = arguments["lr"]
        if isinstance(lr, Tensor):
            arguments["lr"] = lr.double().squeeze() if group["differentiable"] else lr.item()
        return arguments

    def warn_if_never_rectified(self, group: Group) -> None:
        """Warn if ``betas[1]`` is so small that no step is rectified."""
        beta2, threshold = float(group["betas"][1]), self.get(group, "rectify_threshold")
        if self.get(group, "rectify") and rho_inf(beta2) <= threshold:
            falls_back = self.get(group, "degenerated_to_sgd")
            fallback = "SGD with momentum" if falls_back else "skipped"
            warn_user(
                f"no step is ever rectified: betas[1]={beta2} gives rho_inf={rho_inf(beta2):.4g}, "
                f"expected more than rectify_threshold={threshold:.4g}; every step is {fallback}"
            )


_BOTH = ("lr", "betas", "eps", "weight_decay")
RADAM = OptionSet(
    "RAdam",
    (*_BOTH, "maximize", "foreach", "capturable", "decoupled_weight_decay", "differentiable"),
)
_ADAM = (*_BOTH, "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")
ADAM = OptionSet(
    "Adam", (*_ADAM, "decoupled_weight_decay"), rectify=False, eps_after_bias_correction=True
)
ADAMW = OptionSet(
    "AdamW",
    ADAM.of_torch,
    rectify=False,
    eps_after_bias_correction=True,
    weight_decay=1e-2,
    decoupled_weight_decay=True,
)


def _is_internal(module: str) -> bool:
    return module.partition(".")[0] in (__package__, "torch")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, at the line of the first caller outside of torch and this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and _is_internal(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
