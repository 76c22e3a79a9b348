"""Rectified Adam (arXiv 1908.03265, Algorithm 2) in Triton: the coefficients and the update.

This is the only mathematics in Triton. It has the operations of csrc/radam_math.h in the same
order, each rounded to nearest even; kernels that call it are compiled without contraction.
"""

from collections import namedtuple

import triton
import triton.language as tl

from ..options import OPTION_NAMES

# The options that the coefficients are computed from; radam_fused/options.py documents each.
Options = namedtuple("Options", OPTION_NAMES)

# The kinds of update, with the numbers of Update in csrc/radam_math.h.
NONE = tl.constexpr(0)
MOMENTUM = tl.constexpr(1)
RECTIFIED = tl.constexpr(2)
SKIPPED = tl.constexpr(3)  # a gradient overflowed: the step changes nothing, not even the moments


@triton.jit
def _quotient(x, y):
    # div_rn and sqrt_rn take float32 only; Triton's float64 operators round correctly.
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
        param: Parameters; a block in the arithmetic type, as are the next four.
        grad: Gradients.
        exp_avg: First moments.
        exp_avg_sq: Second moments.
        max_exp_avg_sq: Running maxima of the second moments; ignored without AMSGRAD.
        coefficients: Tuple of the eight numbers of radam_fused.rectification.Coefficients, in that
            order; in the arithmetic type.
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
        # Like torch.maximum: a NaN in either operand gives NaN.
        s = tl.where((v > max_exp_avg_sq) | (v != v), v, max_exp_avg_sq)
    if kind == RECTIFIED:
        p = p - _quotient(m * step_size, _root(s) + eps)
    elif kind == MOMENTUM:
        p = p - m * step_size
    return p, m, v, s


@triton.jit
def _geometric(beta, count):
    # The same method as _geometric() in radam_fused.rectification: doubling, with positive terms.
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
    # The same formula as variance() in radam_fused.rectification.
    result = rho / (2.0 * (rho - 2.0) * (rho - 4.0))
    if exact:
        SHIFTS: tl.constexpr = 8
        y = 2.0 * (rho + 2.0 * SHIFTS) - 3.0
        w = 1.0 / (y * y)
        # Each literal stands in a float64 expression: alone, it would become float32.
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
def coefficients(step, options, lr, grad_scale):
    """The coefficients of a step, with the bits of radam_fused.rectification.coefficients.

    Args:
        step: Step count, including this step; int64.
        options: Options, in float64; 1 for true and 0 for false.
        lr: Learning rate, which replaces options.lr; float64.
        grad_scale: Factor that the gradients were multiplied by; float64.

    Returns:
        grad_mul, l2, decay, one_minus_beta1, beta2, one_minus_beta2, step_size and eps in float64,
        and the kind of update.
    """
    o = options
    total, weighted = _geometric(o.beta2, step)
    correction1 = (1.0 - o.beta1) * _geometric(o.beta1, step)[0]
    root_correction2 = _root((1.0 - o.beta2) * total)

    r_t = tl.full((), 1.0, tl.float64)
    if o.rectify != 0:
        exact = o.exact_rectification != 0
        limit = 2.0 / (1.0 - o.beta2) - 1.0
        rho = 2.0 * weighted / total - 1.0
        rho = tl.where(limit < rho, limit, rho)
        if rho > o.rectify_threshold:
            r_t = _root(_variance(limit, exact) / _variance(rho, exact))
        else:
            r_t = tl.full((), 0.0, tl.float64)

    kind = tl.full((), NONE, tl.int32)
    step_size = tl.full((), 0.0, tl.float64)
    if r_t > 0.0:
        kind = tl.full((), RECTIFIED, tl.int32)
        step_size = lr * r_t * root_correction2 / correction1
    elif o.degenerated_to_sgd != 0:
        kind = tl.full((), MOMENTUM, tl.int32)
        step_size = lr / correction1

    decoupled = o.decoupled_weight_decay != 0
    decay = tl.full((), 1.0, tl.float64)
    if decoupled and (kind != NONE or o.decay_skipped_steps != 0):
        absolute = o.absolute_weight_decay != 0
        decay = 1.0 - o.weight_decay if absolute else 1.0 - lr * o.weight_decay
    grad_mul = tl.where(o.maximize != 0, -1.0, 1.0).to(tl.float64) / grad_scale
    l2 = tl.where(decoupled, 0.0, o.weight_decay)
    eps = tl.where(o.eps_after_bias_correction != 0, o.eps * root_correction2, o.eps)
    return grad_mul, l2, decay, 1.0 - o.beta1, o.beta2, 1.0 - o.beta2, step_size, eps, kind
