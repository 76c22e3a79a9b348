"""Runs the kernels of the gradient norm on the current device and stream."""

from collections.abc import Callable, Sequence

import triton.language as tl
from torch import Tensor

from .sum_kernels import CHUNK, ROW_WORDS, clip_kernel, fold_kernel, sum_kernel
from .upload import Upload

_EXACT = {"enable_fp_fusion": False}


def sum_chunks(upload: Upload, gradient: tl.dtype, numbers: Tensor) -> None:
    """Enqueue the sums of the squares of each chunk of a launch's gradients.

    Args:
        upload: The launch's tables on the device.
        gradient: Dtype of the gradients.
        numbers: Receives them; float64.
    """
    segments, index, shift = upload.segments, upload.index, upload.index_shift
    sum_kernel[(upload.num_programs,)](segments, index, shift, numbers, G=gradient, **_EXACT)


def fold_levels(upload: Upload, levels: Sequence[int], numbers: Tensor, sums: Tensor) -> None:
    """Enqueue the sums of the chunks of each parameter.

    Args:
        upload: The launch's tables on the device, with the rows of all levels.
        levels: Number of rows of each level.
        numbers: The sums of the chunks, and memory for the results of the levels; float64.
        sums: Receives the results of the last level; float64.
    """
    first = 0
    for i, count in enumerate(levels):
        rows = upload.rows[first * ROW_WORDS.value :]
        to = sums if i == len(levels) - 1 else numbers
        fold_kernel[(count,)](numbers, rows, to, 0, HAS_ROWS=True, **_EXACT)
        first += count


def fold(numbers: Tensor, make: Callable[[int], Tensor]) -> Tensor:
    """The sum of 1-d float64 numbers, a 0-d tensor.

    Args:
        numbers: The numbers.
        make: Makes memory for some float64 numbers.
    """
    while True:
        chunks = max(1, -(-numbers.numel() // CHUNK.value))
        results = make(chunks)
        count = numbers.numel()
        fold_kernel[(chunks,)](numbers, numbers, results, count, HAS_ROWS=False, **_EXACT)
        numbers = results
        if chunks == 1:
            return numbers[0]


def clip(
    square_sum: Tensor,
    grad_scale: Tensor | None,
    failed: Tensor | None,
    options: tuple[float, float, bool],
    state: Tensor,
) -> None:
    """Compute the clip coefficient of a step. See clip_kernel."""
    max_norm, skip_above, skips = options
    clip_kernel[(1,)](
        square_sum,
        state if grad_scale is None else grad_scale,
        state if failed is None else failed,
        max_norm,
        skip_above,
        int(skips),
        state,
        HAS_SCALE=grad_scale is not None,
        CAN_FAIL=failed is not None,
        num_warps=1,
        **_EXACT,
    )
