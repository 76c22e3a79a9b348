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
def _weights(w):
    # See weights() in csrc/radam_math.h.
    is_large = w > 0.5
    return tl.where(is_large, 1.0 - w, 1.0).to(w.dtype), tl.where(is_large, 0.0, 1.0).to(w.dtype)


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
        coefficients: Tuple of the seven numbers of radam_fused.rectification.Coefficients, in that
            order; in the arithmetic type.
        kind: NONE, MOMENTUM or RECTIFIED.
        AMSGRAD: Whether to divide by the running maximum.

    Returns:
        The new param, exp_avg, exp_avg_sq and max_exp_avg_sq.
    """
    grad_mul, l2, decay, one_minus_beta1, one_minus_beta2, step_size, eps = coefficients
    g = grad * grad_mul
    # A zero weight must not turn an infinite parameter into a NaN gradient.
    if l2 != 0:
        g = g + param * l2
    p = param * decay
    keep, drop = _weights(one_minus_beta1)
    m = exp_avg * keep + (g - exp_avg * drop) * one_minus_beta1
    keep, drop = _weights(one_minus_beta2)
    # g w comes first: g g would overflow earlier.
    v = exp_avg_sq * keep + (g * (g * one_minus_beta2) - exp_avg_sq * (drop * one_minus_beta2))
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
def _normalized(high, low):
    total = high + low
    return total, low - (total - high)


@triton.jit
def _add(a, a_low, b, b_low):
    total = a + b
    from_b = total - a
    error = (a - (total - from_b)) + (b - from_b)
    return _normalized(total, error + (a_low + b_low))


@triton.jit
def _split(x):
    scaled = x * 134217729.0  # 2^27 + 1
    high = scaled - (scaled - x)
    return high, x - high


@triton.jit
def _multiply(a, a_low, b, b_low):
    product = a * b
    x, x_low = _split(a)
    y, y_low = _split(b)
    error = ((x * y - product) + x * y_low + x_low * y) + x_low * y_low
    return _normalized(product, error + (a * b_low + a_low * b))


@triton.jit
def _geometric(beta, count):
    # The same operations as _geometric() in radam_fused.rectification. Each sum is two numbers.
    MOST: tl.constexpr = 9007199254740992.0  # 2^53
    zero = tl.full((), 0.0, tl.float64)
    one = tl.full((), 1.0, tl.float64)
    steps = tl.where(count < MOST, count, MOST).to(tl.int64)
    n = zero
    power, power_low = one, zero
    total, total_low = zero, zero
    weighted, weighted_low = zero, zero
    bit = tl.full((), 1, tl.int64)
    while bit <= steps // 2:
        bit = bit * 2
    while bit > 0:
        x, x_low = _multiply(total, total_low, n, zero)
        x, x_low = _add(x, x_low, weighted, weighted_low)
        x, x_low = _multiply(power, power_low, x, x_low)
        weighted, weighted_low = _add(weighted, weighted_low, x, x_low)
        x, x_low = _multiply(power, power_low, total, total_low)
        total, total_low = _add(total, total_low, x, x_low)
        power, power_low = _multiply(power, power_low, power, power_low)
        n *= 2.0
        if (steps & bit) != 0:
            total, total_low = _add(total, total_low, power, power_low)
            n += 1.0
            x, x_low = _multiply(power, power_low, n, zero)
            weighted, weighted_low = _add(weighted, weighted_low, x, x_low)
            power, power_low = _multiply(power, power_low, beta, zero)
        bit = bit // 2
    rest = tl.where(count < MOST, count - n, 0.0)
    part, part_power, part_total, part_weighted = one, beta, one, one
    while rest > 0.0:
        part *= 0.5
        part_power = _root(part_power)
        part_total = part_total / (1.0 + part_power)
        part_weighted = (part_weighted - part_power * part * part_total) / (1.0 + part_power)
        if rest >= part:
            rest -= part
            x, x_low = _multiply(power, power_low, n * part_total + part_weighted, zero)
            weighted, weighted_low = _add(weighted, weighted_low, x, x_low)
            x, x_low = _multiply(power, power_low, part_total, zero)
            total, total_low = _add(total, total_low, x, x_low)
            power, power_low = _multiply(power, power_low, part_power, zero)
            n += part
    return total, total_low, weighted, weighted_low


@triton.jit
def _bias_correction(beta, total, total_low):
    zero = tl.full((), 0.0, tl.float64)
    weight, weight_low = _add(zero + 1.0, zero, -beta, zero)
    return _multiply(weight, weight_low, total, total_low)[0]


@triton.jit
def _rho(total, total_low, weighted, weighted_low):
    zero = tl.full((), 0.0, tl.float64)
    quotient = weighted / total
    x, x_low = _multiply(total, total_low, -quotient, zero)
    rest = _add(weighted, weighted_low, x, x_low)[0]
    return _add(2.0 * quotient, 2.0 * (rest / total), zero - 1.0, zero)[0]


@triton.jit
def is_count(count):
    """Whether a step counter holds a count: not NaN, infinite or negative."""
    return (count >= 0) & (count - count == 0)


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
def clip(square_sum, grad_scale, max_norm, skip_above, skips_nonfinite):
    """The clip coefficient of a step, with the bits of radam_fused.rectification.clip.

    Returns:
        The norm and the coefficient in float64, and whether the step is skipped.
    """
    norm = _root(square_sum) / grad_scale
    is_finite = norm - norm == 0
    one = tl.full((), 1.0, tl.float64)
    coefficient = max_norm / (norm + 1e-6)
    coefficient = tl.where(coefficient > 1.0, one, coefficient)  # NaN stays NaN
    coefficient = tl.where(max_norm - max_norm == 0, coefficient, one)
    return norm, coefficient, (norm > skip_above) | (skips_nonfinite & (not is_finite))


@triton.jit
def coefficients(step, options, lr, grad_scale, clip_coefficient):
    """The coefficients of a step, with the bits of radam_fused.rectification.coefficients.

    Args:
        step: Step count, including this step; float64.
        options: Options, in float64; 1 for true and 0 for false.
        lr: Learning rate, which replaces options.lr; float64.
        grad_scale: Factor that the gradients were multiplied by; float64.
        clip_coefficient: Factor that the gradients are multiplied by to limit their norm; float64.

    Returns:
        grad_mul, l2, decay, one_minus_beta1, one_minus_beta2, step_size and eps in float64, and the
        kind of update.
    """
    o = options
    total, total_low, _, _ = _geometric(o.beta1, step)
    correction1 = _bias_correction(o.beta1, total, total_low)
    total, total_low, weighted, weighted_low = _geometric(o.beta2, step)
    root_correction2 = _root(_bias_correction(o.beta2, total, total_low))

    r_t = tl.full((), 1.0, tl.float64)
    if o.rectify != 0:
        exact = o.exact_rectification != 0
        limit = 2.0 / (1.0 - o.beta2) - 1.0
        rho = _rho(total, total_low, weighted, weighted_low)
        rho = tl.where(limit < rho, limit, rho)
        if rho > o.rectify_threshold:
            r_t = _root(_variance(limit, exact) / _variance(rho, exact))
        else:
            r_t = tl.full((), 0.0, tl.float64)

    kind = tl.full((), NONE, tl.int32)
    step_size = tl.full((), 0.0, tl.float64)
    moves = lr != 0.0
    if moves and r_t > 0.0:
        kind = tl.full((), RECTIFIED, tl.int32)
        step_size = lr * r_t * root_correction2 / correction1
    elif moves and o.degenerated_to_sgd != 0:
        kind = tl.full((), MOMENTUM, tl.int32)
        step_size = lr / correction1

    decoupled = o.decoupled_weight_decay != 0
    decay = tl.full((), 1.0, tl.float64)
    if decoupled and moves and (kind != NONE or o.decay_skipped_steps != 0):
        absolute = o.absolute_weight_decay != 0
        decay = 1.0 - o.weight_decay if absolute else 1.0 - lr * o.weight_decay
    grad_mul = tl.where(o.maximize != 0, -1.0, 1.0).to(tl.float64) / grad_scale * clip_coefficient
    l2 = tl.where(decoupled, 0.0, o.weight_decay)
    eps = tl.where(o.eps_after_bias_correction != 0, o.eps * root_correction2, o.eps)
    return grad_mul, l2, decay, 1.0 - o.beta1, 1.0 - o.beta2, step_size, eps, kind
