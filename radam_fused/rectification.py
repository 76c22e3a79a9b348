"""The rectification term and the coefficients of one step, in float64 on the host.

Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv 1908.03265,
sections 3 and 4 and Algorithm 2. Powers are taken by repeated squaring, so that a device can repeat
the same bits without a mathematical library.
"""

from enum import IntEnum
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

__all__ = [
    "Coefficients",
    "Update",
    "coefficients",
    "rectification",
    "rho",
    "rho_inf",
    "variance",
]


class Update(IntEnum):
    """What one step does to the parameter, as csrc/radam_math.h numbers it."""

    NONE = 0
    MOMENTUM = 1
    RECTIFIED = 2


class Coefficients(NamedTuple):
    """The numbers that one step needs, uniform over all parameters with the same step count.

    Attributes:
        grad_mul: Factor on the gradient: -1 to maximize, over the gradient's scale.
        l2: Weight of the parameter in the gradient (L2 decay), 0 for none.
        decay: Factor on the parameter (decoupled decay), 1 for none.
        one_minus_beta1: Weight of the gradient in ``exp_avg``.
        beta2: Weight of the past in ``exp_avg_sq``.
        one_minus_beta2: Weight of the squared gradient in ``exp_avg_sq``.
        step_size: Learning rate with the bias corrections and r_t folded in.
        eps: Added to the root of ``exp_avg_sq``.
        update: What happens to the parameter.
    """

    grad_mul: float
    l2: float
    decay: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float
    eps: float
    update: Update


@lru_cache(maxsize=16)  # a step asks for the same sums more than once
def _geometric(beta: float, count: int) -> tuple[float, float]:
    """The sums of beta^k and of (k + 1) beta^k over k < count, by doubling.

    All terms are positive, so nothing cancels: 1 - beta^t taken as (1 - beta) times the first sum
    keeps its digits however near beta is to 1.
    """
    n, power, total, weighted = 0, 1.0, 0.0, 0.0
    for bit in f"{count:b}":
        weighted += power * (n * total + weighted)
        total += power * total
        power *= power
        n *= 2
        if bit == "1":
            total += power
            n += 1
            weighted += n * power
            power *= beta
    return total, weighted


def _bias_correction(beta: float, step: int) -> float:
    """1 - beta^step."""
    return (1.0 - beta) * _geometric(beta, step)[0]


def rho_inf(beta2: float) -> float:
    """Length of the approximated simple moving average after infinitely many steps.

    arXiv 1908.03265, section 4.1: ``2 / (1 - beta2) - 1``.

    Args:
        beta2: Decay rate of the second moment, in [0, 1).
    """
    return 2.0 / (1.0 - beta2) - 1.0


def rho(step: int, beta2: float) -> float:
    """Length of the approximated simple moving average at a step.

    arXiv 1908.03265, section 4.1: ``rho_inf - 2 t beta2^t / (1 - beta2^t)``. It is 1 at the first
    step and grows towards ``rho_inf``. That difference cancels up to ten digits in float64;
    computed is the centre of mass that it stands for, ``2 sum_k (k + 1) beta2^k / sum_k beta2^k -
    1`` over k < t, which is the same number and keeps all but a digit or two.

    Args:
        step: Number of steps taken, this one included (t >= 1).
        beta2: Decay rate of the second moment, in [0, 1).
    """
    total, weighted = _geometric(beta2, step)
    # Never above its limit by a rounding: r_t would pass 1, and beta2 = 2/3 would rectify.
    return min(2.0 * weighted / total - 1.0, rho_inf(beta2))


# c_7 to c_1 of z (gamma(z + 1/4) / gamma(z + 3/4))^2 = 1 - sum_k c_k / (4 z)^(2 k), all exact.
_SERIES = (
    29412432709.0 / 2048.0,
    -233526463.0 / 1024.0,
    1319183.0 / 256.0,
    -22931.0 / 128.0,
    173.0 / 16.0,
    -11.0 / 8.0,
    1.0 / 2.0,
)
_SHIFTS = 8  # with seven terms the error is that of float64 down to rho = 2


@lru_cache(maxsize=16)  # every step asks for that at rho_inf
def _exact_variance(rho: float) -> float:
    # Var / rho at rho + 16 by the series, where the two terms of the theorem no longer cancel; from
    # there down by gamma(x + 1) = x gamma(x), a recurrence whose terms are all positive.
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
    infinite up to ``rho = 2``.

    Args:
        rho: Length of the simple moving average; above 4, where ``exact`` above 2.
        exact: arXiv 1908.03265, Theorem 1, ``rho / (rho - 2) - rho 2^(2 rho - 5) B^2 / pi`` with
            the Beta function ``B((rho - 1) / 2, (rho - 1) / 2)``. That difference cancels; taken
            instead are the asymptotic series of the quotient of two gamma functions (DLMF 5.11.14)
            and their recurrence, which keep all digits. Otherwise the first-order approximation,
            ``rho / (2 (rho - 2) (rho - 4))``.
    """
    if exact:
        return _exact_variance(rho)
    return rho / (2.0 * (rho - 2.0) * (rho - 4.0))


def rectification(step: int, beta2: float, threshold: float = 5.0, exact: bool = False) -> float:
    """Rectification term r_t of the adaptive learning rate, 0 where the step is not rectified.

    arXiv 1908.03265, section 4.3 and Algorithm 2: the root of the variance at ``rho_inf`` over that
    at ``rho_t``, by default with the first-order approximation of both,
    ``sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))``.

    Args:
        step: Number of steps taken, this one included (t >= 1).
        beta2: Decay rate of the second moment, in [0, 1).
        threshold: The step is rectified where rho_t is greater; at least 4, where ``exact`` at
            least 2, below which the variance that r_t divides by is not finite.
        exact: Take the exact variance.
    """
    rho_t = rho(step, beta2)
    if not rho_t > threshold:
        return 0.0
    return sqrt(variance(rho_inf(beta2), exact) / variance(rho_t, exact))


def coefficients(
    step: int,
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
) -> Coefficients:
    """Coefficients of step number ``step`` (arXiv 1908.03265, Algorithm 2).

    Args:
        step: Number of steps taken, this one included (t >= 1).
        lr: Learning rate; a 0-d float64 tensor keeps the step differentiable in it.
        betas: Decay rates of the moments.
        eps: Term added to the denominator.
        weight_decay: Decay rate.
        decoupled_weight_decay: Scale the parameter instead of adding to the gradient.
        maximize: Ascend.
        rectify: Multiply the adaptive rate by r_t; if not, every step is adaptive (Adam).
        rectify_threshold: Rectified where rho_t is greater.
        exact_rectification: Take r_t from the exact variance.
        degenerated_to_sgd: Step by the momentum where not rectified, instead of not at all.
        eps_after_bias_correction: Add eps to the root of the corrected second moment.
        absolute_weight_decay: Decoupled decay by ``1 - weight_decay``, whatever the learning rate.
        decay_skipped_steps: Apply decoupled decay also where the parameter takes no step.
        grad_scale: Factor by which the gradients are too large (that of a gradient scaler).
    """
    beta1, beta2 = betas
    correction1 = _bias_correction(beta1, step)
    root_correction2 = sqrt(_bias_correction(beta2, step))

    r_t = 1.0
    if rectify:
        r_t = rectification(step, beta2, rectify_threshold, exact_rectification)
    if r_t > 0.0:
        update, step_size = Update.RECTIFIED, lr * r_t * root_correction2 / correction1
    elif degenerated_to_sgd:
        update, step_size = Update.MOMENTUM, lr / correction1
    else:
        update, step_size = Update.NONE, 0.0

    decay = 1.0
    if decoupled_weight_decay and (update is not Update.NONE or decay_skipped_steps):
        decay = 1.0 - weight_decay if absolute_weight_decay else 1.0 - lr * weight_decay

    return Coefficients(
        grad_mul=(-1.0 if maximize else 1.0) / grad_scale,
        l2=0.0 if decoupled_weight_decay else weight_decay,
        decay=decay,
        one_minus_beta1=1.0 - beta1,
        beta2=beta2,
        one_minus_beta2=1.0 - beta2,
        step_size=step_size,
        eps=eps * root_correction2 if eps_after_bias_correction else eps,
        update=update,
    )
