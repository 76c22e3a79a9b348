"""The rectification term and the coefficients of a step, in float64 on the host.

Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv 1908.03265,
sections 3 and 4 and Algorithm 2. Powers are computed by repeated squaring: a device gets the same
bits without a mathematical library. Sums are pairs of float64 numbers, so that rho_t and the bias
corrections are accurate to float64 at any step.
"""

import warnings
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from math import inf, sqrt
from numbers import Real
from typing import NamedTuple

__all__ = [
    "Clip",
    "Coefficients",
    "Update",
    "clip",
    "coefficients",
    "r_t",
    "rho_inf",
    "rho_t",
    "variance",
]


class Update(IntEnum):
    """The kind of an update, with the numbers of Update in csrc/radam_math.h."""

    NONE = 0
    MOMENTUM = 1
    RECTIFIED = 2


class Coefficients(NamedTuple):
    """The coefficients of a step, the same for all parameters with the same step count.

    Attributes:
        grad_mul: Factor of the gradient: 1, or -1 to maximize, divided by the gradient's scale, and
            multiplied by the clip coefficient.
        l2: Factor of the parameter in the gradient (L2 decay); 0 for none.
        decay: Factor of the parameter (decoupled decay); 1 for none.
        one_minus_beta1: Weight of the gradient in ``exp_avg``.
        one_minus_beta2: Weight of the squared gradient in ``exp_avg_sq``.
        step_size: Learning rate times the bias corrections and r_t.
        eps: Term added to the root of ``exp_avg_sq``.
        update: Kind of the update.
    """

    grad_mul: float
    l2: float
    decay: float
    one_minus_beta1: float
    one_minus_beta2: float
    step_size: float
    eps: float
    update: Update


class _Pair(NamedTuple):
    """The unevaluated sum of two float64 numbers: about 106 bits.

    T. J. Dekker, "A floating-point technique for extending the available precision", 1971.
    """

    high: float
    low: float = 0.0


def _normalized(high: float, low: float) -> _Pair:
    total = high + low
    return _Pair(total, low - (total - high))


def _add(a: _Pair, b: _Pair) -> _Pair:
    total = a.high + b.high
    from_b = total - a.high
    error = (a.high - (total - from_b)) + (b.high - from_b)
    return _normalized(total, error + (a.low + b.low))


def _split(x: float) -> tuple[float, float]:
    scaled = x * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - x)
    return high, x - high


def _multiply(a: _Pair, b: _Pair) -> _Pair:
    product = a.high * b.high
    (x, x_low), (y, y_low) = _split(a.high), _split(b.high)
    error = ((x * y - product) + x * y_low + x_low * y) + x_low * y_low
    return _normalized(product, error + (a.high * b.low + a.low * b.high))


_MOST_STEPS = 2.0**53  # the sums over more steps differ only for a beta next to 1


@lru_cache(maxsize=16)  # a step needs the same sums more than once
def _geometric(beta: float, count: float) -> tuple[_Pair, _Pair]:
    """The sums of beta^k and of (k + 1) beta^k for k < count, by doubling.

    All terms are positive, so no digits cancel: 1 - beta^count, computed as 1 - beta times the
    first sum, is accurate for any beta, however near to 1. For a count with a fraction, as in an
    averaged state, the sums are those of the closed forms (1 - beta^count) / (1 - beta) and
    (first sum - count beta^count) / (1 - beta).
    """
    steps = int(min(count, _MOST_STEPS))
    n, power, total, weighted = 0.0, _Pair(1.0), _Pair(0.0), _Pair(0.0)
    for bit in f"{steps:b}":
        doubled = _multiply(power, _add(_multiply(total, _Pair(n)), weighted))
        weighted = _add(weighted, doubled)
        total = _add(total, _multiply(power, total))
        power = _multiply(power, power)
        n *= 2
        if bit == "1":
            total = _add(total, power)
            n += 1
            weighted = _add(weighted, _multiply(power, _Pair(n)))
            power = _multiply(power, _Pair(beta))
    rest = count - steps if count < _MOST_STEPS else 0.0
    # The sums over one step, halved again and again.
    part, part_power, part_total, part_weighted = 1.0, beta, 1.0, 1.0
    while rest > 0.0:
        part *= 0.5
        part_power = sqrt(part_power)
        part_total = part_total / (1.0 + part_power)
        part_weighted = (part_weighted - part_power * part * part_total) / (1.0 + part_power)
        if rest >= part:
            rest -= part
            weighted = _add(weighted, _multiply(power, _Pair(n * part_total + part_weighted)))
            total = _add(total, _multiply(power, _Pair(part_total)))
            power = _multiply(power, _Pair(part_power))
            n += part
    return total, weighted


def _bias_correction(beta: float, step: float) -> float:
    """1 - beta^step."""
    return _multiply(_add(_Pair(1.0), _Pair(-beta)), _geometric(beta, step)[0]).high


def _check(name: str, value: float, expected: str, is_valid: Callable[[float], bool]) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    if not is_valid(value):
        raise ValueError(f"{name} is {value}, expected {expected}")


def rho_inf(beta2: float) -> float:
    """Length of the approximated simple moving average after infinitely many steps.

    arXiv 1908.03265, section 4.1: ``2 / (1 - beta2) - 1``.

    Args:
        beta2: Decay rate of the second moment, in [0, 1).

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of range.
    """
    _check("beta2", beta2, "a number in [0, 1)", lambda beta: 0 <= beta < 1)
    return 2.0 / (1.0 - beta2) - 1.0


def rho_t(step: float, beta2: float) -> float:
    """Length of the approximated simple moving average at a step.

    arXiv 1908.03265, section 4.1: ``rho_inf - 2 t beta2^t / (1 - beta2^t)``. It is 1 at the first
    step and grows towards ``rho_inf``. In float64, this difference loses up to ten digits to
    cancellation. The function computes the equal expression
    ``2 sum_k (k + 1) beta2^k / sum_k beta2^k - 1`` for k < t, which loses none.

    Args:
        step: Step count t, including this step (t >= 1). It can have a fraction.
        beta2: Decay rate of the second moment, in [0, 1).

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.
    """
    limit = rho_inf(beta2)
    _check("step", step, "a number above 0", lambda count: count > 0)
    total, weighted = _geometric(beta2, step)
    quotient = weighted.high / total.high
    rest = _add(weighted, _multiply(total, _Pair(-quotient)))
    rho = _add(_Pair(2.0 * quotient, 2.0 * (rest.high / total.high)), _Pair(-1.0)).high
    # A rounding error must not lift it above its limit: r_t would pass 1, or beta2 = 2/3 rectify.
    return min(rho, limit)


# c_7 to c_1 of z (gamma(z + 1/4) / gamma(z + 3/4))^2 = 1 - sum_k c_k / (4 z)^(2 k); exact values.
_SERIES = (
    29412432709.0 / 2048.0,
    -233526463.0 / 1024.0,
    1319183.0 / 256.0,
    -22931.0 / 128.0,
    173.0 / 16.0,
    -11.0 / 8.0,
    1.0 / 2.0,
)
_SHIFTS = 8  # with seven terms, accurate to float64 for every rho above 2


@lru_cache(maxsize=16)  # every step needs the variance at rho_inf
def _exact_variance(rho: float) -> float:
    # The series is accurate at rho + 16 and gives Var / rho there; gamma(x + 1) = x gamma(x) leads
    # down to rho in steps of 2, by a recurrence with positive terms only.
    y = 2.0 * (rho + 2.0 * _SHIFTS) - 3.0
    w = 1.0 / (y * y)
    rest = 0.0
    for c in _SERIES:
        rest = (rest + c) * w
    share = 2.0 / y * (1.0 / (y - 1.0) + rest)
    for k in range(_SHIFTS - 1, -1, -1):
        x = rho + 2.0 * k
        share = (x * x * (x - 2.0) * share + 1.0) / ((x - 2.0) * ((x - 1.0) * (x - 1.0)))
    return rho * share


def variance(rho: float, exact: bool = False) -> float:
    """Variance of the adaptive learning rate over gradients from N(0, 1).

    The adaptive rate is the inverse root of the mean of ``rho`` squared gradients. Its variance is
    infinite for ``rho`` up to 2.

    Args:
        rho: Length of the simple moving average; above 4, or above 2 if ``exact``.
        exact: Whether to use the exact variance of arXiv 1908.03265, Theorem 1,
            ``rho / (rho - 2) - rho 2^(2 rho - 5) B^2 / pi`` with the Beta function
            ``B((rho - 1) / 2, (rho - 1) / 2)``. Because this difference loses digits to
            cancellation, the function evaluates the asymptotic series of the quotient of two gamma
            functions (DLMF 5.11.14) and their recurrence. False: the first-order approximation
            ``rho / (2 (rho - 2) (rho - 4))``.

    Raises:
        TypeError: ``rho`` is not a number.
        ValueError: The variance is infinite.
    """
    least = 2 if exact else 4
    _check("rho", rho, f"a number above {least}", lambda length: length > least)
    if exact:
        return _exact_variance(rho)
    return rho / (2.0 * (rho - 2.0) * (rho - 4.0))


def r_t(step: float, beta2: float, threshold: float = 5.0, exact: bool = False) -> float:
    """Rectification term of the adaptive learning rate; 0 if the step is not rectified.

    arXiv 1908.03265, section 4.3 and Algorithm 2: the square root of the variance at ``rho_inf``
    divided by the variance at ``rho_t``. With the first-order approximation of both, this is
    ``sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))``.

    Args:
        step: Step count t, including this step (t >= 1).
        beta2: Decay rate of the second moment, in [0, 1).
        threshold: The step is rectified if rho_t is greater. At least 4, or at least 2 if
            ``exact``; the variance is infinite below.
        exact: Whether to use the exact variance.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.
    """
    least = 2 if exact else 4
    _check("threshold", threshold, f"a number of at least {least}", lambda value: value >= least)
    rho = rho_t(step, beta2)
    if not rho > threshold:
        return 0.0
    return sqrt(variance(rho_inf(beta2), exact) / variance(rho, exact))


def coefficients(
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
    rectify: bool,
    rectify_threshold: float,
    exact_rectification: bool,
    degenerated_to_sgd: bool,
    eps_after_bias_correction: bool,
    absolute_weight_decay: bool,
    decay_skipped_steps: bool,
    grad_scale: float = 1.0,
    clip_coefficient: float = 1.0,
) -> Coefficients:
    """The coefficients of a step (arXiv 1908.03265, Algorithm 2).

    Args:
        step: Step count t, including this step (t >= 1).
        lr: Learning rate. With a 0-d float64 tensor, the step is differentiable in it. A step with
            rate 0 changes no parameter, whatever the other options.
        betas: Decay rates of the moments.
        eps: Term added to the denominator.
        weight_decay: Decay rate.
        decoupled_weight_decay: Scale the parameter instead of adding to the gradient.
        maximize: Ascend instead of descend.
        rectify: Multiply the adaptive rate by r_t. False: every step is adaptive (Adam).
        rectify_threshold: A step is rectified if rho_t is greater.
        exact_rectification: Compute r_t from the exact variance.
        degenerated_to_sgd: A step that is not rectified is SGD with momentum. False: it is skipped.
        eps_after_bias_correction: Add eps to the root of the bias-corrected second moment.
        absolute_weight_decay: Decoupled decay by ``1 - weight_decay``, independent of lr.
        decay_skipped_steps: Apply decoupled decay also in skipped steps.
        grad_scale: Factor that the gradients were multiplied by, for example by a gradient scaler.
        clip_coefficient: Factor that the gradients are multiplied by to limit their norm.
    """
    beta1, beta2 = betas
    correction1 = _bias_correction(beta1, step)
    root_correction2 = sqrt(_bias_correction(beta2, step))

    # At 0, a step can still have a derivative by the rate.
    moves = bool(lr != 0) or getattr(lr, "requires_grad", False)
    rate = 1.0
    if rectify:
        rate = r_t(step, beta2, rectify_threshold, exact_rectification)
    if not moves:
        update, step_size = Update.NONE, 0.0
    elif rate > 0.0:
        update, step_size = Update.RECTIFIED, lr * rate * root_correction2 / correction1
    elif degenerated_to_sgd:
        update, step_size = Update.MOMENTUM, lr / correction1
    else:
        update, step_size = Update.NONE, 0.0

    decay = 1.0
    if decoupled_weight_decay and moves and (update is not Update.NONE or decay_skipped_steps):
        decay = 1.0 - weight_decay if absolute_weight_decay else 1.0 - lr * weight_decay

    return Coefficients(
        grad_mul=(-1.0 if maximize else 1.0) / grad_scale * clip_coefficient,
        l2=0.0 if decoupled_weight_decay else weight_decay,
        decay=decay,
        one_minus_beta1=1.0 - beta1,
        one_minus_beta2=1.0 - beta2,
        step_size=step_size,
        eps=eps * root_correction2 if eps_after_bias_correction else eps,
        update=update,
    )


class Clip(NamedTuple):
    """The norm of all gradients of a step, and what follows from it.

    Attributes:
        norm: 2-norm of the gradients, divided by their scale.
        coefficient: Factor of the gradients.
        skips: Whether the step is skipped.
    """

    norm: float
    coefficient: float
    skips: bool


def clip(
    square_sum: float,
    grad_scale: float = 1.0,
    max_norm: float = inf,
    skip_above: float = inf,
    skips_nonfinite: bool = False,
) -> Clip:
    """The clip coefficient of a step, that of `torch.nn.utils.clip_grad_norm_` in float64.

    Args:
        square_sum: Sum of the squares of the gradients, multiplied by their scale.
        grad_scale: Factor that the gradients were multiplied by.
        max_norm: Largest norm of the gradients after clipping; infinity for no clipping.
        skip_above: Largest norm of a step that is not skipped.
        skips_nonfinite: Whether a step with an infinite norm or NaN is skipped.
    """
    norm, coefficient = sqrt(square_sum) / grad_scale, 1.0
    if max_norm < inf:
        coefficient = max_norm / (norm + 1e-6)
        coefficient = 1.0 if coefficient > 1.0 else coefficient  # NaN stays NaN
    return Clip(norm, coefficient, norm > skip_above or (skips_nonfinite and not norm < inf))


def rho(step: int, beta2: float) -> float:
    """Deprecated name of `rho_t`."""
    warnings.warn("rho is deprecated, use rho_t", DeprecationWarning, stacklevel=2)
    return rho_t(step, beta2)


def rectification(step: int, beta2: float, threshold: float = 5.0, exact: bool = False) -> float:
    """Deprecated name of `r_t`."""
    warnings.warn("rectification is deprecated, use r_t", DeprecationWarning, stacklevel=2)
    return r_t(step, beta2, threshold, exact)
