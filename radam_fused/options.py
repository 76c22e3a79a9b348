"""Every option of a parameter group, declared once."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from .values import Domain, choice, decay_rates, flag, number, whole_number

Group = Mapping[str, Any]


class Feeds(Enum):
    """The part of a step that an option affects."""

    COEFFICIENTS = "the coefficients of the update"
    PLAN = "the launch of a parameter"
    FORMAT = "the tensors of a parameter, and how they are stored"
    DRAWS = "the random bits of a step"
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


def _rounding_is_excluded(values: Group) -> Exception | None:
    if values["stochastic_rounding"] and values["master_weights"] is not None:
        return ValueError(
            f"master_weights={values['master_weights']!r} keeps what stochastic_rounding=True "
            "would round, expected one of them"
        )
    return None


def _differentiable_is_excluded(values: Group) -> Exception | None:
    if not values["differentiable"]:
        return None
    changed = values["master_weights"] or values["stochastic_rounding"]
    if changed or values["moments"] == "bfloat16":
        return RuntimeError(
            "`differentiable` does not support `master_weights`, `stochastic_rounding` and "
            "`moments='bfloat16'`, whose rounding has no derivative"
        )
    return None


# Each returns the error of a combination of options, or None.
RULES = (
    _threshold_is_low,
    _decay_is_absolute,
    _fused_is_excluded,
    _rounding_is_excluded,
    _differentiable_is_excluded,
)

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
        Feeds.FORMAT,
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
    Option(
        "moments",
        None,
        Feeds.FORMAT,
        "How moments are stored. None: in the dtype of the update, which is float32 for 16-bit "
        "parameters. ``'bfloat16'``: in 16 bits, for float32 and 16-bit parameters; ``exp_avg_sq`` "
        "is rounded stochastically. ``'param'``: in the parameter's dtype, to nearest, as torch "
        "does; at ``betas[1]=0.999``, a bfloat16 second moment then cannot decay.",
        choice("moments", "bfloat16", "param"),
    ),
    Option(
        "master_weights",
        None,
        Feeds.FORMAT,
        "What the state keeps of the float32 values of 16-bit parameters, with which a step then "
        "works. ``'split'``: the 16 bits that bfloat16 leaves out, as ``param_remainder``. "
        "``'float32'``: a copy, as ``master_param``.",
        choice("master_weights", "split", "float32"),
    ),
    _flag(
        "stochastic_rounding",
        False,
        Feeds.FORMAT,
        "Round bfloat16 parameters up or down at random, so that small updates are not lost.",
    ),
    Option(
        "seed",
        0,
        Feeds.DRAWS,
        "Seed of the random bits of stochastic rounding: an integer below 2^53. The bits depend on "
        "it, on the step, and on the parameter's name (its number, if it has none), and not on how "
        "parameters are sharded.",
        whole_number("seed", 2**53),
    ),
)

COEFFICIENTS = tuple(option.name for option in OPTIONS if option.feeds is Feeds.COEFFICIENTS)
NAMES = tuple(option.name for option in OPTIONS)
PLAN = tuple(option.name for option in OPTIONS if option.feeds in (Feeds.PLAN, Feeds.FORMAT))

# Options that change the results of a step.
UPDATING = tuple(
    option.name for option in OPTIONS if option.feeds not in (Feeds.PLAN, Feeds.NOTHING)
)

# The options of the coefficients as a vector of float64, in the order of csrc/options.def.
OPTION_NAMES = (
    "lr",
    "beta1",
    "beta2",
    *(name for name in COEFFICIENTS if name not in ("lr", "betas")),
)
