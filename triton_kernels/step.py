"""The kernels of a step, which move data: radam_math.py says what is computed.

A program updates one chunk. It finds the segment that holds it by a search in the table, so a
launch needs no list of chunks. Chunks that are whole and aligned are moved in 128-bit words.

Every argument is an address or a number in 64 bits, none is specialised, and all that a step may
change is an argument: a kernel is compiled once for each combination of constants.
"""

import triton
import triton.language as tl

from .radam_math import SKIPPED, coefficients, update

# Columns of a table of segments, all int64, as csrc/segments.h has them: addresses, scalars,
# scalars of the segments before it (each padded to whole chunks), and which coefficients apply.
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
EXP_AVG = tl.constexpr(2)
EXP_AVG_SQ = tl.constexpr(3)
MAX_EXP_AVG_SQ = tl.constexpr(4)
NUMEL = tl.constexpr(5)
FIRST = tl.constexpr(6)
ROW = tl.constexpr(7)

# Columns of a table of coefficients, radam_fused.rectification.Coefficients: float64, then int64.
COEFFICIENTS = tl.constexpr(9)


@triton.jit
def _word(table, rows, COLUMN: tl.constexpr, row):
    return tl.load(table.to(tl.pointer_type(tl.int64)) + (rows * COLUMN + row))


@triton.jit
def _number(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _find(table, rows, count, begin):
    """The segment that holds scalar `begin`: the last one that starts at or before it."""
    low = count * 0
    high = count
    # Tensors of like sizes are found at the guess.
    guess = tl.program_id(0).to(tl.int64) * count // tl.num_programs(0)
    for at in tl.static_range(2):
        middle = guess + at
        if (low < middle) & (middle < high):
            if _word(table, rows, FIRST, middle) <= begin:
                low = middle
            else:
                high = middle
    while high - low > 1:
        middle = low + (high - low) // 2
        if _word(table, rows, FIRST, middle) <= begin:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _pointers(address, start, TYPE: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr):
    first = address.to(tl.int64).to(tl.pointer_type(TYPE)) + start
    if WHOLE:
        first = tl.multiple_of(first, 16)
    return first + tl.arange(0, SIZE)


@triton.jit
def _step_part(
    addresses,
    start,
    end,
    coefficients,
    kind,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SIZE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Scalars from start on: SIZE of them, aligned, if WHOLE; else up to end."""
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq = addresses
    param_at = _pointers(param, start, P, SIZE, WHOLE)
    grad_at = _pointers(grad, start, G, SIZE, WHOLE)
    exp_avg_at = _pointers(exp_avg, start, M, SIZE, WHOLE)
    exp_avg_sq_at = _pointers(exp_avg_sq, start, M, SIZE, WHOLE)
    max_exp_avg_sq_at = _pointers(max_exp_avg_sq, start, M, SIZE, WHOLE)
    # A mask makes every access one of single scalars, also where it is always true.
    mask = None if WHOLE else tl.arange(0, SIZE) < end - start
    p = tl.load(param_at, mask=mask)
    g = tl.load(grad_at, mask=mask)
    m = tl.load(exp_avg_at, mask=mask)
    v = tl.load(exp_avg_sq_at, mask=mask)
    s = tl.load(max_exp_avg_sq_at, mask=mask) if AMSGRAD else v
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32  # noqa: SIM300
    p, m, v, s = update(p.to(T), g.to(T), m.to(T), v.to(T), s.to(T), coefficients, kind, AMSGRAD)
    tl.store(param_at, p.to(P), mask=mask)
    tl.store(exp_avg_at, m.to(M), mask=mask)
    tl.store(exp_avg_sq_at, v.to(M), mask=mask)
    if AMSGRAD:
        tl.store(max_exp_avg_sq_at, s.to(M), mask=mask)


@triton.jit(do_not_specialize=list(range(19)))
def step_kernel(
    table: tl.int64,
    rows: tl.int64,
    count: tl.int64,
    param: tl.int64,
    grad: tl.int64,
    exp_avg: tl.int64,
    exp_avg_sq: tl.int64,
    max_exp_avg_sq: tl.int64,
    numel: tl.int64,
    coefficients_at: tl.int64,
    grad_mul: tl.int64,
    l2: tl.int64,
    decay: tl.int64,
    one_minus_beta1: tl.int64,
    beta2: tl.int64,
    one_minus_beta2: tl.int64,
    step_size: tl.int64,
    eps: tl.int64,
    kind: tl.int64,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
):
    """A step. What the arguments name is as in radam_fused.rectification and csrc/segments.h.

    Args:
        table: Address of the table of segments, or 0: the one segment that follows.
        rows: Rows for which the table has room.
        count: Segments.
        param: Address of the parameters.
        grad: Address of the gradients.
        exp_avg: Address of the first moments.
        exp_avg_sq: Address of the second moments.
        max_exp_avg_sq: Address of their running maxima, or 0.
        numel: Scalars of the segment.
        coefficients_at: Address of the table of coefficients, or 0: those that follow, as bits.
        grad_mul: Factor on the gradient.
        l2: Weight of the parameter in the gradient.
        decay: Factor on the parameter.
        one_minus_beta1: Weight of the gradient in exp_avg.
        beta2: Weight of the past in exp_avg_sq.
        one_minus_beta2: Weight of the squared gradient in exp_avg_sq.
        step_size: Learning rate with the bias corrections and r_t folded in.
        eps: Added to the root of exp_avg_sq.
        kind: The kind of update.
        P: Dtype of the parameters.
        G: Dtype of the gradients.
        M: Dtype of the moments.
        AMSGRAD: Whether there are running maxima.
        CHUNK: Scalars of a program.
        PART: Scalars at once where a chunk is not whole and aligned.
    """
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    offset = begin
    row = begin * 0
    if table != 0:
        segment = _find(table, rows, count, begin)
        offset = begin - _word(table, rows, FIRST, segment)
        param = _word(table, rows, PARAM, segment)
        grad = _word(table, rows, GRAD, segment)
        exp_avg = _word(table, rows, EXP_AVG, segment)
        exp_avg_sq = _word(table, rows, EXP_AVG_SQ, segment)
        if AMSGRAD:
            max_exp_avg_sq = _word(table, rows, MAX_EXP_AVG_SQ, segment)
        numel = _word(table, rows, NUMEL, segment)
        row = _word(table, rows, ROW, segment)
    if coefficients_at != 0:
        at = coefficients_at.to(tl.pointer_type(tl.int64)) + row * COEFFICIENTS
        grad_mul = tl.load(at)
        l2 = tl.load(at + 1)
        decay = tl.load(at + 2)
        one_minus_beta1 = tl.load(at + 3)
        beta2 = tl.load(at + 4)
        one_minus_beta2 = tl.load(at + 5)
        step_size = tl.load(at + 6)
        eps = tl.load(at + 7)
        kind = tl.load(at + 8)
    T: tl.constexpr = tl.float64 if tl.float64 == P else tl.float32
    if kind != SKIPPED:
        c = (
            _number(grad_mul).to(T),
            _number(l2).to(T),
            _number(decay).to(T),
            _number(one_minus_beta1).to(T),
            _number(beta2).to(T),
            _number(one_minus_beta2).to(T),
            _number(step_size).to(T),
            _number(eps).to(T),
        )
        is_aligned = ((param | grad | exp_avg | exp_avg_sq | max_exp_avg_sq) % 16) == 0
        addresses = (param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq)
        if (numel - offset >= CHUNK) & is_aligned:
            _step_part(addresses, offset, numel, c, kind, P, G, M, AMSGRAD, CHUNK, True)
        else:
            # In parts, because pointers and masks of single scalars fill many registers.
            end = tl.minimum(offset + CHUNK, numel)
            start = offset
            while start < end:
                _step_part(addresses, start, end, c, kind, P, G, M, AMSGRAD, PART, False)
                start += PART


@triton.jit(do_not_specialize=list(range(16)))
def prologue_kernel(
    table: tl.int64,
    rows: tl.int64,
    coefficients_at: tl.int64,
    counters: tl.int64,
    counters_are_float64: tl.int64,
    lr_at: tl.int64,
    lr_is_float64: tl.int64,
    grad_scale_at: tl.int64,
    found_inf_at: tl.int64,
    lr: tl.int64,
    beta1: tl.int64,
    beta2: tl.int64,
    eps: tl.int64,
    weight_decay: tl.int64,
    rectify_threshold: tl.int64,
    flags: tl.int64,
):
    """Count a step and compute its coefficients, for each segment in a program of one warp.

    Args:
        table: Address of the table of segments.
        rows: Rows for which the table has room.
        coefficients_at: Address of the table of coefficients.
        counters: Address of the step counters.
        counters_are_float64: Whether they are, not float32.
        lr_at: Address of the learning rate, or 0: that which follows.
        lr_is_float64: Whether it is float64 there, not float32.
        grad_scale_at: Address of the gradients' scale, float32, or 0: it is 1.
        found_inf_at: Address of the verdict on them, float32, not 0 where nothing is to move; or 0.
        lr: Learning rate; this and what follows as bits of float64.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Term added to the denominator.
        weight_decay: Decay rate.
        rectify_threshold: Rectified where rho_t is greater.
        flags: The options of the coefficients() of radam_math.py that are true or false, in their
            order, from the lowest bit.
    """
    row = _word(table, rows, ROW, tl.program_id(0).to(tl.int64))
    to = coefficients_at.to(tl.pointer_type(tl.float64)) + row * COEFFICIENTS
    kind_to = coefficients_at.to(tl.pointer_type(tl.int64)) + (row * COEFFICIENTS + 8)
    overflows = False
    if found_inf_at != 0:
        overflows = tl.load(found_inf_at.to(tl.pointer_type(tl.float32))) != 0
    if overflows:
        tl.store(kind_to, SKIPPED)
    else:
        rate = _number(lr)
        if lr_at != 0:
            if lr_is_float64 != 0:
                rate = tl.load(lr_at.to(tl.pointer_type(tl.float64)))
            else:
                rate = tl.load(lr_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
        grad_scale = tl.full((), 1.0, tl.float64)
        if grad_scale_at != 0:
            grad_scale = tl.load(grad_scale_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
        # Counted in the counter's own precision, as torch counts.
        if counters_are_float64 != 0:
            counter = counters.to(tl.pointer_type(tl.float64)) + row
            count = tl.load(counter) + 1
            tl.store(counter, count)
            step = count.to(tl.int64)
        else:
            counter32 = counters.to(tl.pointer_type(tl.float32)) + row
            count32 = tl.load(counter32) + 1
            tl.store(counter32, count32)
            step = count32.to(tl.int64)
        c = coefficients(
            step,
            rate,
            _number(beta1),
            _number(beta2),
            _number(eps),
            _number(weight_decay),
            _number(rectify_threshold),
            grad_scale,
            (flags & 1) != 0,
            (flags & 2) != 0,
            (flags & 4) != 0,
            (flags & 8) != 0,
            (flags & 16) != 0,
            (flags & 32) != 0,
            (flags & 64) != 0,
            (flags & 128) != 0,
        )
        for k in tl.static_range(8):
            tl.store(to + k, c[k])
        tl.store(kind_to, c[8])


@triton.jit(do_not_specialize=[0])
def upload_kernel(to: tl.int64, words):
    """Words of 64 bits, a tuple, written to memory by one program.

    Args:
        to: Address of the first.
        words: The words.
    """
    at = to.to(tl.pointer_type(tl.int64))
    for k in tl.static_range(len(words)):
        tl.store(at + k, words[k].to(tl.int64))
