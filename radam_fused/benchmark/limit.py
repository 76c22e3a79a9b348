"""The bandwidth limit: the time that the memory needs for the bytes of a float32 step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backends.cpu import instruction_sets
from ..extension import _C

LIMIT = "limit: read 4, write 3"
COPY = "limit: a copy of as many bytes"
BYTES = 28  # per float32 element: four arrays read, three written

_LARGEST_COPY = 2**30  # bytes of each of the two arrays of a copy


def move(arrays: Sequence[Tensor]) -> Callable[[], None]:
    """A step on the CPU that reads four arrays, writes three of them and computes nothing else.

    Args:
        arrays: Four contiguous float32 arrays of one length. The second is only read.
    """
    arrays, best = list(arrays), instruction_sets()[0]
    return lambda: _C.cpu_move(arrays, torch.get_num_threads(), best)


def copy(size: int, device: str) -> tuple[Callable[[], object], float]:
    """A copy inside the memory of a device. On GPUs it is as fast as `move`.

    Args:
        size: Bytes that a step reads and writes in total.
        device: The device.

    Returns:
        The copy, and the part of `size` that it moves.
    """
    part = min(size // 2, _LARGEST_COPY)
    source, target = (torch.zeros(part, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source), 2 * part / size
