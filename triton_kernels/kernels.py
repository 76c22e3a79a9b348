"""The Triton kernels. They move data; the mathematics stands in radam_math.py.

A program updates one chunk. It finds the segment that holds the chunk between two entries of an
index, so the host need not list the chunks. A whole, aligned chunk is moved in 128-bit words.

Arguments are not specialised: a kernel is compiled once per combination of its constants.
"""

import triton
import triton.language as tl

from ..options import OPTION_NAMES
from ..state import ROLES
from .radam_math import SKIPPED, Options, is_count, update
from .radam_math import coefficients as coefficients_of

LEVELS = tl.constexpr(10)  # of the fold of a chunk, 2^10 elements

# The 8-byte words of Segment in csrc/segments.h: the address of each role, then four integers.
PARAM = tl.constexpr(ROLES.index("param"))
GRAD = tl.constexpr(ROLES.index("grad"))
STEP = tl.constexpr(ROLES.index("step"))
EXP_AVG = tl.constexpr(ROLES.index("exp_avg"))
EXP_AVG_SQ = tl.constexpr(ROLES.index("exp_avg_sq"))
MAX_EXP_AVG_SQ = tl.constexpr(ROLES.index("max_exp_avg_sq"))
ADDRESSES = tl.constexpr(len(ROLES))
NUMEL = tl.constexpr(len(ROLES))
FIRST = tl.constexpr(len(ROLES) + 1)
COEFFICIENTS_INDEX = tl.constexpr(len(ROLES) + 2)
OPTIONS_INDEX = tl.constexpr(len(ROLES) + 3)
SEGMENT_WORDS = tl.constexpr(len(ROLES) + 4)

# The words of StepCoefficients, as wide as its arithmetic type: seven numbers, then the kind of
# update as int32, and padding.
KIND = tl.constexpr(7)
COEFFICIENTS_WORDS = tl.constexpr(8)

# The words of DeviceOptions: the options as float64, then four addresses and a flag as int64.
NAMES = tl.constexpr(OPTION_NAMES)
LR = tl.constexpr(len(OPTION_NAMES))
LR_IS_FLOAT64 = tl.constexpr(len(OPTION_NAMES) + 1)
GRAD_SCALE = tl.constexpr(len(OPTION_NAMES) + 2)
FOUND_INF = tl.constexpr(len(OPTION_NAMES) + 3)
CLIP = tl.constexpr(len(OPTION_NAMES) + 4)
OPTIONS_WORDS = tl.constexpr(len(OPTION_NAMES) + 5)


@triton.jit
def _find(segments, index, index_shift, begin):
    """Number of the segment that holds element `begin`: the last that starts at or before it."""
    entry = index + (tl.program_id(0).to(tl.int64) >> index_shift)
    low = tl.load(entry).to(tl.int64)
    high = tl.load(entry + 1).to(tl.int64) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        if tl.load(segments + (middle * SEGMENT_WORDS + FIRST)) <= begin:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _addresses(segment):
    """Addresses of all roles, and whether every array is aligned to 16 bytes."""
    addresses = ()
    bits = tl.full((), 0, tl.int64)
    for role in tl.static_range(ADDRESSES):
        address = tl.load(segment + role)
        addresses += (address,)
        if role != STEP:  # a single number, not an array
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
    """Load the block arguments of `update`, converted to the arithmetic type."""
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
def _store_array(
    address, start, mask, values, TYPE: tl.constexpr, WHOLE: tl.constexpr, WORDS: tl.constexpr
):
    """Store a block. The threads of a whole one hold WORDS neighbouring 128-bit words: 1, 2 or 4.

    Each store takes one word of every thread. A single one for all words would have to exchange
    them between the threads first, through shared memory.
    """
    x = values.to(TYPE)
    SIZE: tl.constexpr = x.shape[0]
    if WORDS == 1 or not WHOLE:
        tl.store(_array(address, start, TYPE, SIZE, WHOLE), x, mask=mask)
    else:
        first = tl.multiple_of(address.to(tl.pointer_type(TYPE)) + start, 16)
        WIDTH: tl.constexpr = 128 // TYPE.primitive_bitwidth
        THREADS: tl.constexpr = SIZE // (WORDS * WIDTH)
        thread = tl.arange(0, THREADS)[:, None] * (WORDS * WIDTH) + tl.arange(0, WIDTH)[None, :]
        if WORDS == 2:
            even, odd = tl.split(x.reshape(THREADS, 2, WIDTH).permute(0, 2, 1))
            tl.store(first + thread, even)
            tl.store(first + WIDTH + thread, odd)
        else:
            low, high = tl.split(x.reshape(THREADS, 2, 2, WIDTH).permute(0, 2, 3, 1))
            for half in tl.static_range(2):
                even, odd = tl.split((low if half == 0 else high).permute(0, 2, 1))
                tl.store(first + 2 * half * WIDTH + thread, even)
                tl.store(first + (2 * half + 1) * WIDTH + thread, odd)


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
    G: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Store the results of `update`, converted to the stored types."""
    # In a whole block, a thread holds as many elements as fill a word in the narrowest type.
    BITS: tl.constexpr = min(P.primitive_bitwidth, min(G.primitive_bitwidth, M.primitive_bitwidth))
    WORDS: tl.constexpr = M.primitive_bitwidth // BITS
    _store_array(addresses[PARAM], start, mask, p, P, WHOLE, P.primitive_bitwidth // BITS)
    _store_array(addresses[EXP_AVG], start, mask, m, M, WHOLE, WORDS)
    _store_array(addresses[EXP_AVG_SQ], start, mask, v, M, WHOLE, WORDS)
    if AMSGRAD:
        _store_array(addresses[MAX_EXP_AVG_SQ], start, mask, s, M, WHOLE, WORDS)


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
    TRACKS: tl.constexpr,
    SIZE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Update SIZE elements from `start` on; without WHOLE, only those before `end`.

    Returns:
        If TRACKS, the squares of the differences to the stored parameters; float64.
    """
    # No mask for a whole block: any mask, even one that is always true, prevents wide accesses.
    mask = None if WHOLE else tl.arange(0, SIZE) < end - start
    before, g, m, v, s = _load(addresses, start, mask, P, G, M, AMSGRAD, SIZE, WHOLE)
    p, m, v, s = update(before, g, m, v, s, coefficients, kind, AMSGRAD)
    # Only here, so that the loads do not wait for the kind.
    if kind != SKIPPED:
        _store(addresses, start, mask, p, m, v, s, P, G, M, AMSGRAD, WHOLE)
    if TRACKS:
        difference = (p.to(P).to(before.dtype) - before).to(tl.float64)
        squares = difference * difference
        is_updated = kind != SKIPPED if WHOLE else mask & (kind != SKIPPED)
        return tl.where(is_updated, squares, 0.0)


@triton.jit
def fold(x, LEVELS: tl.constexpr):
    """The sum of a block of 2^LEVELS float64 numbers, in the order of csrc/sums.h."""
    for _ in tl.static_range(LEVELS - 1):
        x = tl.sum(x.reshape(2, x.shape[0] // 2), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def _kind(coefficients):
    return (coefficients + KIND).to(tl.pointer_type(tl.int32))


@triton.jit
def _address(options, WORD: tl.constexpr):
    return tl.load((options + WORD).to(tl.pointer_type(tl.int64)))


_ARGUMENTS = ["segments", "index", "index_shift", "device_options", "coefficients", "sums"]


@triton.jit(do_not_specialize=_ARGUMENTS, do_not_specialize_on_alignment=_ARGUMENTS)
def step_kernel(
    segments,
    index,
    index_shift: tl.int64,
    coefficients,
    sums,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    AMSGRAD: tl.constexpr,
    TRACKS: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
):
    """Update every parameter of a launch. One program per chunk.

    Args:
        segments: Array of Segment, in ascending order of `first`; int64.
        index: The entries of a ChunkIndex (csrc/chunk_index.h); int32.
        index_shift: Its shift.
        coefficients: Array of StepCoefficients, in the arithmetic type.
        sums: If TRACKS, receives for each chunk the sum of the squares of the differences to the
            stored parameters; float64.
        P: Dtype of the parameters.
        G: Dtype of the gradients.
        M: Dtype of the moments.
        AMSGRAD: Whether there are running maxima.
        TRACKS: Whether to sum the squares.
        CHUNK: Elements per program.
        PART: Elements per block in a chunk that is not whole and aligned.
    """
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    segment = segments + _find(segments, index, index_shift, begin) * SEGMENT_WORDS
    coefficients += tl.load(segment + COEFFICIENTS_INDEX) * COEFFICIENTS_WORDS
    kind = tl.load(_kind(coefficients))
    c = ()
    for k in tl.static_range(KIND):
        c += (tl.load(coefficients + k),)
    addresses, is_aligned = _addresses(segment)
    start = begin - tl.load(segment + FIRST)
    end = tl.load(segment + NUMEL)
    if (end - start >= CHUNK) & is_aligned:
        squares = _step_part(addresses, start, end, c, kind, P, G, M, AMSGRAD, TRACKS, CHUNK, True)
        if TRACKS:
            tl.store(sums + tl.program_id(0), fold(squares, LEVELS))
    else:
        # Small parts, because a pointer and a mask per element need many registers.
        end = tl.minimum(start + CHUNK, end)
        total = tl.zeros((PART,), tl.float64)
        while start < end:
            squares = _step_part(
                addresses, start, end, c, kind, P, G, M, AMSGRAD, TRACKS, PART, False
            )
            if TRACKS:
                total += squares  # the first level of fold(), because PART is half a chunk
            start += PART
        if TRACKS:
            tl.store(sums + tl.program_id(0), fold(total, LEVELS - 1))


@triton.jit(do_not_specialize=_ARGUMENTS, do_not_specialize_on_alignment=_ARGUMENTS)
def prologue_kernel(segments, device_options, coefficients, S: tl.constexpr):
    """Count a step and compute its coefficients. One program of one warp per segment.

    Args:
        segments: Array of Segment; int64.
        device_options: Array of DeviceOptions; float64.
        coefficients: Array of StepCoefficients in the arithmetic type, which the kernel writes.
        S: Dtype of the step counters.
    """
    segment = segments + tl.program_id(0).to(tl.int64) * SEGMENT_WORDS
    options = device_options + tl.load(segment + OPTIONS_INDEX) * OPTIONS_WORDS
    coefficients += tl.load(segment + COEFFICIENTS_INDEX) * COEFFICIENTS_WORDS
    found_inf = _address(options, FOUND_INF)
    counter = tl.load(segment + STEP).to(tl.pointer_type(S))
    count = tl.load(counter)
    skips = not is_count(count)
    if found_inf != 0:
        skips = skips or tl.load(found_inf.to(tl.pointer_type(tl.float32))) != 0
    clip_coefficient = tl.full((), 1.0, tl.float64)
    clip_at = _address(options, CLIP)
    if clip_at != 0:
        clip = clip_at.to(tl.pointer_type(tl.float64))  # norm, coefficient, skips
        clip_coefficient = tl.load(clip + 1)
        skips = skips or tl.load(clip + 2) != 0
    if skips:
        tl.store(_kind(coefficients), SKIPPED)
    else:
        # The counter is incremented in its own dtype, as in torch.
        step = count + 1
        tl.debug_barrier()  # all lanes read the counter before one of them writes it
        tl.store(counter, step)

        numbers = ()
        for k in tl.static_range(len(NAMES.value)):
            numbers += (tl.load(options + k),)
        o = Options(*numbers)
        lr = o.lr
        lr_at = _address(options, LR)
        if lr_at != 0:
            if _address(options, LR_IS_FLOAT64) != 0:
                lr = tl.load(lr_at.to(tl.pointer_type(tl.float64)))
            else:
                lr = tl.load(lr_at.to(tl.pointer_type(tl.float32))).to(tl.float64)
        grad_scale = tl.full((), 1.0, tl.float64)
        grad_scale_at = _address(options, GRAD_SCALE)
        if grad_scale_at != 0:
            grad_scale = tl.load(grad_scale_at.to(tl.pointer_type(tl.float32))).to(tl.float64)

        c = coefficients_of(step.to(tl.float64), o, lr, grad_scale, clip_coefficient)
        for k in tl.static_range(KIND):
            tl.store(coefficients + k, c[k].to(coefficients.dtype.element_ty))
        tl.store(_kind(coefficients), c[KIND])


@triton.jit
def probe_kernel():
    """Do nothing. Shows whether a device can run a kernel."""
