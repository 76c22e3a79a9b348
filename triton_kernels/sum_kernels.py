"""The Triton kernels of the gradient norm. The order of a sum is that of csrc/sums.h."""

import triton
import triton.language as tl

from .kernels import LEVELS, _find, _kind, fold
from .radam_math import SKIPPED
from .radam_math import clip as clip_of
from .storage import COEFFICIENTS_WORDS, FIRST, GRAD, KIND, NUMEL, SEGMENT_WORDS

CHUNK = tl.constexpr(1024)  # numbers that are folded into one

# The 8-byte words of FoldRow in csrc/sums.h.
ROW_WORDS = tl.constexpr(3)


_SUM_ARGUMENTS = ["segments", "index", "index_shift", "sums"]


@triton.jit(do_not_specialize=_SUM_ARGUMENTS, do_not_specialize_on_alignment=_SUM_ARGUMENTS)
def sum_kernel(segments, index, index_shift: tl.int64, sums, G: tl.constexpr):
    """Sum the squares of the gradients of a launch. One program per chunk.

    Args:
        segments: Array of Segment; int64.
        index: The entries of a ChunkIndex (csrc/chunk_index.h); int32.
        index_shift: Its shift.
        sums: Receives the sum of each chunk; float64.
        G: Dtype of the gradients.
    """
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    segment = segments + _find(segments, index, index_shift, begin) * SEGMENT_WORDS
    start = begin - tl.load(segment + FIRST)
    elements = tl.arange(0, CHUNK)
    gradient = tl.load(segment + GRAD).to(tl.pointer_type(G)) + start
    mask = elements < tl.load(segment + NUMEL) - start
    x = tl.load(gradient + elements, mask=mask, other=0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), fold(x * x, LEVELS))


_FOLD_ARGUMENTS = ["numbers", "rows", "to", "numel"]


@triton.jit(do_not_specialize=_FOLD_ARGUMENTS, do_not_specialize_on_alignment=_FOLD_ARGUMENTS)
def fold_kernel(numbers, rows, to, numel: tl.int64, HAS_ROWS: tl.constexpr):
    """Fold numbers. One program per result.

    Args:
        numbers: The numbers; float64.
        rows: Array of FoldRow; int64. Without HAS_ROWS, each program folds the next CHUNK numbers.
        to: Receives the results; float64.
        numel: Number of the numbers.
        HAS_ROWS: Whether there are rows.
    """
    program = tl.program_id(0).to(tl.int64)
    first, count, at = program * CHUNK, numel - program * CHUNK, program
    if HAS_ROWS:
        row = rows + program * ROW_WORDS
        first, count, at = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    elements = tl.arange(0, CHUNK)
    x = tl.load(numbers + (first + elements), mask=elements < count, other=0.0)
    tl.store(to + at, fold(x, LEVELS))


_CLIP_ARGUMENTS = ["square_sum", "grad_scale", "failed", "max_norm", "skip_above", "skips", "state"]


@triton.jit(do_not_specialize=_CLIP_ARGUMENTS, do_not_specialize_on_alignment=_CLIP_ARGUMENTS)
def clip_kernel(
    square_sum,
    grad_scale,
    failed,
    max_norm: tl.float64,
    skip_above: tl.float64,
    skips: tl.int64,
    state,
    HAS_SCALE: tl.constexpr,
    CAN_FAIL: tl.constexpr,
):
    """Compute the clip coefficient of a step. One program of one warp.

    Args:
        square_sum: Sum of the squares of the gradients; float64.
        grad_scale: Factor that the gradients were multiplied by; float32.
        failed: Number of processes that failed; float64.
        max_norm: See rectification.clip.
        skip_above: See rectification.clip.
        skips: Whether a step with an infinite norm or NaN is skipped.
        state: Receives norm, coefficient and skips; skips is added to a fourth number. float64.
        HAS_SCALE: Whether there is a scale.
        CAN_FAIL: Whether there is a number of processes.
    """
    scale = tl.full((), 1.0, tl.float64)
    if HAS_SCALE:
        scale = tl.load(grad_scale).to(tl.float64)
    norm, coefficient, is_skipped = clip_of(
        tl.load(square_sum), scale, max_norm, skip_above, skips != 0
    )
    counted = tl.where(is_skipped, 1.0, 0.0).to(tl.float64)
    skipped = tl.load(state + 3)
    if CAN_FAIL:
        has_failed = tl.load(failed) > 0
        is_skipped = is_skipped | has_failed
        counted = tl.where(has_failed, 0.0, counted)
    tl.debug_barrier()  # all lanes read the count before one of them writes it
    tl.store(state, norm)
    tl.store(state + 1, coefficient)
    tl.store(state + 2, tl.where(is_skipped, 1.0, 0.0).to(tl.float64))
    tl.store(state + 3, skipped + counted)


_ROUND_ARGUMENTS = ["given", "clip", "coefficients"]


@triton.jit(do_not_specialize=_ROUND_ARGUMENTS, do_not_specialize_on_alignment=_ROUND_ARGUMENTS)
def round_kernel(given, clip, coefficients):
    """Clip and round coefficients that the host has computed. One program of one warp per row.

    Args:
        given: Array of StepCoefficients in float64.
        clip: Norm, coefficient and skips; float64.
        coefficients: Array of StepCoefficients in the arithmetic type, which the kernel writes.
    """
    row = tl.program_id(0).to(tl.int64) * COEFFICIENTS_WORDS
    given += row
    coefficients += row
    for k in tl.static_range(KIND):
        number = tl.load(given + k)
        if k == 0:  # grad_mul
            number *= tl.load(clip + 1)
        tl.store(coefficients + k, number.to(coefficients.dtype.element_ty))
    kind = tl.load(_kind(given))
    if tl.load(clip + 2) != 0:
        kind = tl.full((), SKIPPED, tl.int32)
    tl.store(_kind(coefficients), kind)
