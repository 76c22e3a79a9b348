"""The kernels of a step, which move data; radam_math.py has the mathematics.

A program updates one chunk. It finds the segment that holds it by a search in the table, so a
launch needs no list of chunks. Chunks that are whole and aligned are moved in 128-bit words.

No argument is specialised, so a kernel is compiled once for each combination of its constants.
"""

import triton
import triton.language as tl

from ..options import OPTION_NAMES
from ..state import ROLES
from .radam_math import SKIPPED, Options, update
from .radam_math import coefficients as coefficients_of

# The words of a segment, int64, as csrc/segments.h has them: the address of each role, then its
# scalars, the scalars before it, and the rows of its coefficients and options.
PARAM = tl.constexpr(ROLES.index("param"))
GRAD = tl.constexpr(ROLES.index("grad"))
STEP = tl.constexpr(ROLES.index("step"))
EXP_AVG = tl.constexpr(ROLES.index("exp_avg"))
EXP_AVG_SQ = tl.constexpr(ROLES.index("exp_avg_sq"))
MAX_EXP_AVG_SQ = tl.constexpr(ROLES.index("max_exp_avg_sq"))
ADDRESSES = tl.constexpr(len(ROLES))
NUMEL = tl.constexpr(len(ROLES))
FIRST = tl.constexpr(len(ROLES) + 1)
COEFFICIENTS = tl.constexpr(len(ROLES) + 2)
OPTIONS = tl.constexpr(len(ROLES) + 3)
SEGMENT_WORDS = tl.constexpr(len(ROLES) + 4)

# The words of a row of coefficients: eight float64, then the kind of update, int32 with padding.
KIND = tl.constexpr(8)
COEFFICIENTS_WORDS = tl.constexpr(9)

# The words of a row of options: the numbers, float64, then three addresses and a flag, int64.
NAMES = tl.constexpr(OPTION_NAMES)
LR = tl.constexpr(len(OPTION_NAMES))
LR_IS_FLOAT64 = tl.constexpr(len(OPTION_NAMES) + 1)
GRAD_SCALE = tl.constexpr(len(OPTION_NAMES) + 2)
FOUND_INF = tl.constexpr(len(OPTION_NAMES) + 3)
OPTIONS_WORDS = tl.constexpr(len(OPTION_NAMES) + 4)


@triton.jit
def _find(table, count, begin):
    """The segment that holds scalar `begin`: the last one that starts at or before it."""
    low = count * 0
    high = count
    # Tensors of like sizes are found at the guess.
    guess = tl.program_id(0).to(tl.int64) * count // tl.num_programs(0)
    for at in tl.static_range(2):
        middle = guess + at
        if (low < middle) & (middle < high):
            if tl.load(table + (middle * SEGMENT_WORDS + FIRST)) <= begin:
                low = middle
            else:
                high = middle
    while high - low > 1:
        middle = low + (high - low) // 2
        if tl.load(table + (middle * SEGMENT_WORDS + FIRST)) <= begin:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _addresses(segment):
    """Addresses of every role, and whether all arrays start at a 128-bit word."""
    addresses = ()
    bits = tl.full((), 0, tl.int64)
    for role in tl.static_range(ADDRESSES):
        address = tl.load(segment + role)
        addresses += (address,)
        if role != STEP:  # which is one number
            bits |= address
    return addresses, bits % 16 == 0


@triton.jit
def _array(address, start, TYPE: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr):
    first = address.to(tl.pointer_type(TYPE)) + start
    if WHOLE:
        first = tl.multiple_of(first, 16)
    return first + tl.arange(0, SIZE)


@triton.jit
def _load(
    addresses,
    start,
    mask,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SIZE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """What `update` takes, in the arithmetic type; the stored formats are known here and below."""
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32  # noqa: SIM300
    p = tl.load(_array(addresses[PARAM], start, P, SIZE, WHOLE), mask=mask).to(T)
    g = tl.load(_array(addresses[GRAD], start, G, SIZE, WHOLE), mask=mask).to(T)
    m = tl.load(_array(addresses[EXP_AVG], start, M, SIZE, WHOLE), mask=mask).to(T)
    v = tl.load(_array(addresses[EXP_AVG_SQ], start, M, SIZE, WHOLE), mask=mask).to(T)
    s = v
    if AMSGRAD:
        s = tl.load(_array(addresses[MAX_EXP_AVG_SQ], start, M, SIZE, WHOLE), mask=mask).to(T)
    return p, g, m, v, s


@triton.jit
def _store(
    addresses,
    start,
    mask,
    p,
    m,
    v,
    s,
    P: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SIZE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """What `update` returns, to where `_load` has it from."""
    tl.store(_array(addresses[PARAM], start, P, SIZE, WHOLE), p.to(P), mask=mask)
    tl.store(_array(addresses[EXP_AVG], start, M, SIZE, WHOLE), m.to(M), mask=mask)
    tl.store(_array(addresses[EXP_AVG_SQ], start, M, SIZE, WHOLE), v.to(M), mask=mask)
    if AMSGRAD:
        tl.store(_array(addresses[MAX_EXP_AVG_SQ], start, M, SIZE, WHOLE), s.to(M), mask=mask)


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
    # A mask makes every access one of single scalars, also where it is always true.
    mask = None if WHOLE else tl.arange(0, SIZE) < end - start
    p, g, m, v, s = _load(addresses, start, mask, P, G, M, AMSGRAD, SIZE, WHOLE)
    p, m, v, s = update(p, g, m, v, s, coefficients, kind, AMSGRAD)
    _store(addresses, start, mask, p, m, v, s, P, M, AMSGRAD, SIZE, WHOLE)


@triton.jit
def _kind(row):
    return (row + KIND).to(tl.pointer_type(tl.int32))


@triton.jit
def _address(row, WORD: tl.constexpr):
    return tl.load((row + WORD).to(tl.pointer_type(tl.int64)))


# What may differ from launch to launch.
_ARGUMENTS = ["table", "count", "option_rows", "coefficients"]


@triton.jit(do_not_specialize=_ARGUMENTS, do_not_specialize_on_alignment=_ARGUMENTS)
def step_kernel(
    table,
    count: tl.int64,
    coefficients,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
):
    """A step, in a program for each chunk.

    Args:
        table: Segments, in the order of their first scalars; int64.
        count: How many there are.
        coefficients: Rows of coefficients; float64.
        P: Dtype of the parameters.
        G: Dtype of the gradients.
        M: Dtype of the moments.
        AMSGRAD: Whether there are running maxima.
        CHUNK: Scalars of a program.
        PART: Scalars at once where a chunk is not whole and aligned.
    """
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    segment = table + _find(table, count, begin) * SEGMENT_WORDS
    row = coefficients + tl.load(segment + COEFFICIENTS) * COEFFICIENTS_WORDS
    kind = tl.load(_kind(row))
    if kind != SKIPPED:
        T: tl.constexpr = tl.float64 if tl.float64 == P else tl.float32
        c = ()
        for k in tl.static_range(KIND):
            c += (tl.load(row + k).to(T),)
        addresses, is_aligned = _addresses(segment)
        start = begin - tl.load(segment + FIRST)
        end = tl.load(segment + NUMEL)
        if (end - start >= CHUNK) & is_aligned:
            _step_part(addresses, start, end, c, kind, P, G, M, AMSGRAD, CHUNK, True)
        else:
            # In parts, because pointers and masks of single scalars fill many registers.
            end = tl.minimum(start + CHUNK, end)
            while start < end:
                _step_part(addresses, start, end, c, kind, P, G, M, AMSGRAD, PART, False)
                start += PART


@triton.jit(do_not_specialize=_ARGUMENTS, do_not_specialize_on_alignment=_ARGUMENTS)
def prologue_kernel(table, option_rows, coefficients, S: tl.constexpr):
    """Count a step and compute its coefficients, in a program of one warp for each segment.

    Args:
        table: Segments; int64.
        option_rows: Rows of options; float64.
        coefficients: Rows of coefficients, which this writes; float64.
        S: Dtype of the step counts.
    """
    segment = table + tl.program_id(0).to(tl.int64) * SEGMENT_WORDS
    row = option_rows + tl.load(segment + OPTIONS) * OPTIONS_WORDS
    to = coefficients + tl.load(segment + COEFFICIENTS) * COEFFICIENTS_WORDS
    found_inf = _address(row, FOUND_INF)
    overflows = False
    if found_inf != 0:
        overflows = tl.load(found_inf.to(tl.pointer_type(tl.float32))) != 0
    if overflows:
        tl.store(_kind(to), SKIPPED)
    else:
        # Counted in the counter's own precision, as torch counts.
        counter = tl.load(segment + STEP).to(tl.pointer_type(S))
        count = tl.load(counter) + 1
        tl.debug_barrier()  # every lane reads the count, then one writes it
        tl.store(counter, count)

        numbers = ()
        for k in tl.static_range(len(NAMES.value)):
            numbers += (tl.load(row + k),)
        o = Options(*numbers)
        lr = o.lr
        lr_at = _address(row, LR)
        if lr_at != 0:
            if _address(row, LR_IS_FLOAT64) != 0:
                lr = tl.load(lr_at.to(tl.pointer_type(tl.float64)))
            else:
                lr = tl.load(lr_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
        grad_scale = tl.full((), 1.0, tl.float64)
        grad_scale_at = _address(row, GRAD_SCALE)
        if grad_scale_at != 0:
            grad_scale = tl.load(grad_scale_at.to(tl.pointer_type(tl.float32))).to(tl.float64)

        c = coefficients_of(count.to(tl.int64), o, lr, grad_scale)
        for k in tl.static_range(KIND):
            tl.store(to + k, c[k])
        tl.store(_kind(to), c[KIND])


@triton.jit
def probe_kernel():
    """Does nothing, to see whether a device runs a kernel."""
