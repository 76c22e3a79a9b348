"""The Triton kernels. They move data; the mathematics stands in radam_math.py.

A program updates one chunk. It finds the segment that holds the chunk between two entries of an
index, so the host need not list the chunks.

Arguments are not specialised: a kernel is compiled once per combination of its constants.
"""

import triton
import triton.language as tl

from .radam_math import SKIPPED, Options, is_count, update
from .radam_math import coefficients as coefficients_of
from .rounding import random_bits, step_key
from .storage import (
    CLIP,
    COEFFICIENTS_INDEX,
    COEFFICIENTS_WORDS,
    DRAW_WORDS,
    FIRST,
    FOUND_INF,
    GRAD_SCALE,
    KEY,
    KIND,
    LR,
    LR_IS_FLOAT64,
    NAMES,
    NUMEL,
    OFFSET,
    OPTIONS_INDEX,
    OPTIONS_WORDS,
    RUN,
    SEGMENT_WORDS,
    STEP,
    STEP_KEY,
    STRIDE,
    addresses_of,
    load,
    store,
)

LEVELS = tl.constexpr(10)  # of the fold of a chunk, 2^10 elements


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
def _step_part(
    addresses,
    start,
    end,
    coefficients,
    kind,
    draw,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    MASTER: tl.constexpr,
    AMSGRAD: tl.constexpr,
    DRAWS_PARAM: tl.constexpr,
    DRAWS_EXP_AVG_SQ: tl.constexpr,
    GAPS: tl.constexpr,
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
    before, g, m, v, s = load(addresses, start, mask, P, G, M, MASTER, AMSGRAD, SIZE, WHOLE)
    p, m, v, s = update(before, g, m, v, s, coefficients, kind, AMSGRAD)
    # Only here, so that the loads do not wait for the kind.
    if kind != SKIPPED:
        random = None
        if DRAWS_PARAM or DRAWS_EXP_AVG_SQ:
            key = tl.load(draw + STEP_KEY).to(tl.uint64, bitcast=True)
            offset, run = tl.load(draw + OFFSET), tl.load(draw + RUN)
            random = random_bits(key, offset, run, tl.load(draw + STRIDE), start, SIZE, GAPS)
        p = store(
            addresses,
            start,
            mask,
            p,
            m,
            v,
            s,
            random,
            P,
            G,
            M,
            MASTER,
            AMSGRAD,
            DRAWS_PARAM,
            DRAWS_EXP_AVG_SQ,
            WHOLE,
        )
    if TRACKS:
        if MASTER is None:
            p = p.to(P).to(before.dtype)
        difference = (p - before).to(tl.float64)
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


_ARGUMENTS = [
    *("segments", "index", "index_shift", "device_options", "coefficients", "draws", "sums"),
]


@triton.jit(do_not_specialize=_ARGUMENTS, do_not_specialize_on_alignment=_ARGUMENTS)
def step_kernel(
    segments,
    index,
    index_shift: tl.int64,
    coefficients,
    draws,
    sums,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    MASTER: tl.constexpr,
    AMSGRAD: tl.constexpr,
    DRAWS_PARAM: tl.constexpr,
    DRAWS_EXP_AVG_SQ: tl.constexpr,
    GAPS: tl.constexpr,
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
        draws: If DRAWS_PARAM or DRAWS_EXP_AVG_SQ, array of Draw, one for each segment; int64.
        sums: If TRACKS, receives for each chunk the sum of the squares of the differences to the
            stored parameters; float64.
        P: Dtype of the parameters.
        G: Dtype of the gradients.
        M: Dtype of the moments.
        MASTER: None, "split" or "float32": the masters of the parameters.
        AMSGRAD: Whether there are running maxima.
        DRAWS_PARAM: Whether to round parameters stochastically.
        DRAWS_EXP_AVG_SQ: Whether to round second moments stochastically.
        GAPS: See random_bits.
        TRACKS: Whether to sum the squares.
        CHUNK: Elements per program.
        PART: Elements per block in a chunk that is not whole and aligned.
    """
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    number = _find(segments, index, index_shift, begin)
    segment = segments + number * SEGMENT_WORDS
    draw = draws + number * DRAW_WORDS
    coefficients += tl.load(segment + COEFFICIENTS_INDEX) * COEFFICIENTS_WORDS
    kind = tl.load(_kind(coefficients))
    c = ()
    for k in tl.static_range(KIND):
        c += (tl.load(coefficients + k),)
    addresses, is_aligned = addresses_of(segment)
    start = begin - tl.load(segment + FIRST)
    end = tl.load(segment + NUMEL)
    if (end - start >= CHUNK) & is_aligned:
        squares = _step_part(
            addresses,
            start,
            end,
            c,
            kind,
            draw,
            P,
            G,
            M,
            MASTER,
            AMSGRAD,
            DRAWS_PARAM,
            DRAWS_EXP_AVG_SQ,
            GAPS,
            TRACKS,
            CHUNK,
            True,
        )
        if TRACKS:
            tl.store(sums + tl.program_id(0), fold(squares, LEVELS))
    else:
        # Small parts, because a pointer and a mask per element need many registers.
        end = tl.minimum(start + CHUNK, end)
        total = tl.zeros((PART,), tl.float64)
        while start < end:
            squares = _step_part(
                addresses,
                start,
                end,
                c,
                kind,
                draw,
                P,
                G,
                M,
                MASTER,
                AMSGRAD,
                DRAWS_PARAM,
                DRAWS_EXP_AVG_SQ,
                GAPS,
                TRACKS,
                PART,
                False,
            )
            if TRACKS:
                total += squares  # the first level of fold(), because PART is half a chunk
            start += PART
        if TRACKS:
            tl.store(sums + tl.program_id(0), fold(total, LEVELS - 1))


@triton.jit(do_not_specialize=_ARGUMENTS, do_not_specialize_on_alignment=_ARGUMENTS)
def prologue_kernel(
    segments, device_options, coefficients, draws, S: tl.constexpr, DRAWS: tl.constexpr
):
    """Count a step and compute its coefficients. One program of one warp per segment.

    Args:
        segments: Array of Segment; int64.
        device_options: Array of DeviceOptions; float64.
        coefficients: Array of StepCoefficients in the arithmetic type, which the kernel writes.
        draws: If DRAWS, array of Draw, to which the kernel writes the keys of the step; int64.
        S: Dtype of the step counters.
        DRAWS: Whether the step rounds stochastically.
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
        if DRAWS:
            draw = draws + tl.program_id(0).to(tl.int64) * DRAW_WORDS
            key = tl.load(draw + KEY).to(tl.uint64, bitcast=True)
            own = step_key(key, step.to(tl.float64))
            tl.store(draw + STEP_KEY, own.to(tl.int64, bitcast=True))

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
