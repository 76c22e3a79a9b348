"""Rectified Adam (arXiv 1908.03265, Algorithm 2) for Triton: a step's coefficients, the update.

The only Triton statement of either. Each operation is rounded to nearest even, in the order that
csrc/radam_math.h has; kernels that call it are compiled without contraction.
"""

import triton
import triton.language as tl

# What one step does to the parameter, as csrc/radam_math.h numbers it.
NONE = tl.constexpr(0)
MOMENTUM = tl.constexpr(1)
RECTIFIED = tl.constexpr(2)
SKIPPED = tl.constexpr(3)  # nothing moves, the moments neither: a gradient overflowed


@triton.jit
def _quotient(x, y):
    # div_rn and sqrt_rn know float32 only; in float64 Triton has nothing rougher.
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _root(x):
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def update(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    coefficients,
    kind,
    AMSGRAD: tl.constexpr,
):
    """The update of a block.

    Args:
        param: Parameters, all blocks in the arithmetic type.
        grad: Their gradients.
        exp_avg: First moments.
        exp_avg_sq: Second moments.
        max_exp_avg_sq: Running maxima of these; anything without AMSGRAD.
        coefficients: The numbers of radam_fused.rectification.Coefficients, in that order; scalars
            in the arithmetic type.
        kind: NONE, MOMENTUM or RECTIFIED.
        AMSGRAD: Whether to divide by the running maximum.

    Returns:
        The new param, exp_avg, exp_avg_sq and max_exp_avg_sq.
    """
    grad_mul, l2, decay, one_minus_beta1, beta2, one_minus_beta2, step_size, eps = coefficients
    g = grad * grad_mul
    # A zero weight must not turn an infinite parameter into a NaN gradient.
    if l2 != 0:
        g = g + param * l2
    p = param * decay
    m = exp_avg + (g - exp_avg) * one_minus_beta1
    v = exp_avg_sq * beta2 + (g * g) * one_minus_beta2
    s = v
    if AMSGRAD:
        # As torch.maximum: a NaN on either side wins.
        s = tl.where((v > max_exp_avg_sq) | (v != v), v, max_exp_avg_sq)
    if kind == RECTIFIED:
        p = p - _quotient(m * step_size, _root(s) + eps)
    elif kind == MOMENTUM:
        p = p - m * step_size
    return p, m, v, s


@triton.jit
def _geometric(beta, count):
    # By doubling, all terms positive: as _geometric() of radam_fused.rectification.
    n = tl.full((), 0.0, tl.float64)
    power = tl.full((), 1.0, tl.float64)
    total = tl.full((), 0.0, tl.float64)
    weighted = tl.full((), 0.0, tl.float64)
    bit = tl.full((), 1, tl.int64)
    while bit <= count // 2:
        bit = bit * 2
    while bit > 0:
        weighted += power * (n * total + weighted)
        total += power * total
        power *= power
        n *= 2.0
        if (count & bit) != 0:
            total += power
            n += 1.0
            weighted += n * power
            power *= beta
        bit = bit // 2
    return total, weighted


@triton.jit
def _variance(rho, exact):
    # Of the adaptive rate: as variance() of radam_fused.rectification.
    result = rho / (2.0 * (rho - 2.0) * (rho - 4.0))
    if exact:
        SHIFTS: tl.constexpr = 8
        y = 2.0 * (rho + 2.0 * SHIFTS) - 3.0
        w = 1.0 / (y * y)
        # Within an expression of float64: a literal by itself would become a float32.
        rest = (29412432709.0 / 2048.0) * w
        rest = (rest - 233526463.0 / 1024.0) * w
        rest = (rest + 1319183.0 / 256.0) * w
        rest = (rest - 22931.0 / 128.0) * w
        rest = (rest + 173.0 / 16.0) * w
        rest = (rest - 11.0 / 8.0) * w
        rest = (rest + 1.0 / 2.0) * w
        share = 2.0 / y * (1.0 / (y - 1.0) + rest)
        for i in tl.static_range(SHIFTS):
            x = rho + 2.0 * (SHIFTS - 1 - i)
            share = (x * x * (x - 2.0) * share + 1.0) / ((x - 2.0) * ((x - 1.0) * (x - 1.0)))
        result = rho * share
    return result


@triton.jit
def coefficients(
    step,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    rectify_threshold,
    grad_scale,
    decoupled_weight_decay,
    maximize,
    rectify,
    exact_rectification,
    degenerated_to_sgd,
    eps_after_bias_correction,
    absolute_weight_decay,
    decay_skipped_steps,
):
    """Coefficients of a step that is counted where the host cannot see it.

    Args:
        step: Number of steps taken, this one included; int64.
        lr: This and what follows as in radam_fused.rectification.coefficients, whose bits these
            are; numbers in float64.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Term added to the denominator.
        weight_decay: Decay rate.
        rectify_threshold: Rectified where rho_t is greater.
        grad_scale: Factor by which the gradients are too large.
        decoupled_weight_decay: Scale the parameter instead of adding to the gradient.
        maximize: Ascend.
        rectify: Rectify.
        exact_rectification: Take r_t from the exact variance.
        degenerated_to_sgd: Step by the momentum where not rectified.
        eps_after_bias_correction: Place of eps.
        absolute_weight_decay: Decoupled decay whatever the learning rate.
        decay_skipped_steps: Decoupled decay also where no step is taken.

    Returns:
        grad_mul, l2, decay, one_minus_beta1, beta2, one_minus_beta2, step_size and eps in float64,
        and the kind of update.
    """
    total, weighted = _geometric(beta2, step)
    correction1 = (1.0 - beta1) * _geometric(beta1, step)[0]
    root_correction2 = _root((1.0 - beta2) * total)

    r_t = tl.full((), 1.0, tl.float64)
    if rectify:
        limit = 2.0 / (1.0 - beta2) - 1.0
        rho = 2.0 * weighted / total - 1.0
        rho = tl.where(limit < rho, limit, rho)
        if rho > rectify_threshold:
            r_t = _root(_variance(limit, exact_rectification) / _variance(rho, exact_rectification))
        else:
            r_t = tl.full((), 0.0, tl.float64)

    kind = tl.full((), NONE, tl.int32)
    step_size = tl.full((), 0.0, tl.float64)
    if r_t > 0.0:
        kind = tl.full((), RECTIFIED, tl.int32)
        step_size = lr * r_t * root_correction2 / correction1
    elif degenerated_to_sgd:
        kind = tl.full((), MOMENTUM, tl.int32)
        step_size = lr / correction1

    decay = tl.full((), 1.0, tl.float64)
    if decoupled_weight_decay and (kind != NONE or decay_skipped_steps):
        decay = 1.0 - weight_decay if absolute_weight_decay else 1.0 - lr * weight_decay
    grad_mul = tl.where(maximize, -1.0, 1.0).to(tl.float64) / grad_scale
    l2 = tl.where(decoupled_weight_decay, 0.0, weight_decay)
    eps = tl.where(eps_after_bias_correction, eps * root_correction2, eps)
    return grad_mul, l2, decay, 1.0 - beta1, beta2, 1.0 - beta2, step_size, eps, kind
