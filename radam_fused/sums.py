"""Sums of squares in PyTorch operations, in the order of csrc/sums.h: with the same bits."""

import torch
from torch import Tensor

from .extension import _C
from .tensors import has_own_memory, is_dense

CHUNK = 1024  # numbers that are folded into one


def fold(numbers: Tensor) -> Tensor:
    """The sum of float64 numbers, in an order that is the same on every backend.

    The second half of 1,024 numbers is added to the first half, number by number, then the second
    quarter to the first, until one is left; then 1,024 of these sums in the same way. Missing
    numbers count as zeros.

    Args:
        numbers: 1-d float64 tensor.

    Returns:
        A 0-d float64 tensor.
    """
    if _C is not None and numbers.device.type == "cpu" and has_own_memory(numbers):
        return torch.tensor(_C.fold(numbers), dtype=torch.float64, device="cpu")
    return fold_in_torch(numbers)


def fold_in_torch(numbers: Tensor) -> Tensor:
    """`fold` in PyTorch operations."""
    while True:
        chunks = -(-numbers.numel() // CHUNK)
        missing = max(chunks, 1) * CHUNK - numbers.numel()
        sums = torch.nn.functional.pad(numbers, (0, missing)).view(-1, CHUNK)
        width = CHUNK // 2
        while width > 0:
            sums = sums[:, :width] + sums[:, width:]
            width //= 2
        numbers = sums[:, 0]
        if numbers.numel() == 1:
            return numbers[0]


def fold_rows(rows: Tensor) -> Tensor:
    """The sum of each column, in the order of `fold`.

    Args:
        rows: 2-d float64 tensor, of at least one row.
    """
    count = rows.shape[0]
    width = 1
    while 2 * width < count:
        width *= 2
    while count > 1:
        pairs = rows[: count - width] + rows[width:count]
        rows, count = torch.cat([pairs, rows[count - width : width]]), width
        width //= 2
    return rows[0]


def sum_squares(tensor: Tensor, like: Tensor) -> Tensor:
    """The sum of the squares of a tensor's elements, in float64.

    Args:
        tensor: Real or complex; a complex number counts as two real ones.
        like: A tensor of the same shape, which has the memory order of the sum.

    Returns:
        A 0-d float64 tensor.
    """
    tensor, like = tensor.detach(), like.detach()
    if tensor.is_complex():
        tensor, like = torch.view_as_real(tensor.resolve_conj()), torch.view_as_real(like)
    if has_own_memory(tensor) and has_own_memory(like) and tensor.numel() > 0:
        if tensor.stride() != like.stride() or not is_dense(tensor):
            tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
        tensor = tensor.as_strided((tensor.numel(),), (1,))
    return fold(tensor.reshape(-1).double().square())
