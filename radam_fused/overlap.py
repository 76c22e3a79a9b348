"""Tensors that overlap in memory."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .dtensors import local


class Range(NamedTuple):
    """A range of memory without gaps.

    Attributes:
        device: Its device, as text.
        first: Address of its first byte.
        end: Address after its last byte.
        name: Name of the tensor.
        tensor: The tensor.
    """

    device: str
    first: int
    end: int
    name: str
    tensor: Tensor


def extent(tensor: Tensor, name: str) -> Range:
    """The range from the first to the last element of a tensor that is not empty."""
    tensor = local(tensor)
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in steps)
    first = tensor.data_ptr()
    end = first + elements * tensor.element_size()
    return Range(str(tensor.device), first, end, name, tensor)


def _bytes_of(tensor: Tensor, memory: Tensor, first: int) -> Tensor:
    """The bytes of a tensor, as a view of memory that begins at address `first`."""
    size = tensor.element_size()
    shape, strides = (*tensor.shape, size), (*(stride * size for stride in tensor.stride()), 1)
    return memory.as_strided(shape, strides, tensor.data_ptr() - first)


def _share_bytes(a: Range, b: Range) -> bool:
    if a.device != b.device or a.end <= b.first or b.end <= a.first:
        return False
    first = min(a.first, b.first)
    memory = torch.zeros(max(a.end, b.end) - first, dtype=torch.bool, device="cpu")
    _bytes_of(a.tensor, memory, first).fill_(True)
    return bool(_bytes_of(b.tensor, memory, first).any())


def first_overlap(dense: Sequence[Range], gapped: Sequence[Range] = ()) -> tuple[str, str] | None:
    """The names of two tensors that share memory, or None.

    Args:
        dense: Ranges of tensors without gaps.
        gapped: Extents of tensors with gaps, which can lie between the elements of others.
    """
    for a, b in pairwise(sorted(dense, key=lambda r: r[:2])):
        if a.device == b.device and b.first < a.end:
            return a.name, b.name
    for i, a in enumerate(gapped):
        for b in (*dense, *gapped[i + 1 :]):
            if _share_bytes(a, b):
                return a.name, b.name
    return None
