"""Facts about one tensor: its memory, and its description in error messages."""

import reprlib
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from .dtensors import local


def has_own_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory, unlike a subclass that wraps other tensors, such as DTensor."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one range of memory without gaps or overlaps, in any order."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(local(tensor)))


def is_freed(tensor: Tensor) -> bool:
    """Whether the storage of a tensor has been freed."""
    tensor = local(tensor)
    return has_own_memory(tensor) and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of a strided tensor share memory."""
    tensor = local(tensor)
    if tensor.numel() < 2 or tensor.is_contiguous():
        return False
    steps = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1
    )
    span = 0  # offset of the last element within the dimensions of smaller strides
    for stride, size in steps:
        if stride <= span:
            break
        span += (size - 1) * stride
    else:
        return False
    if steps[0][0] == 0:
        return True
    last = sum((size - 1) * stride for stride, size in steps)
    touched = torch.zeros(last + 1, dtype=torch.bool, device="cpu")
    touched.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return int(touched.sum()) < tensor.numel()


def describe(value: Any) -> str:
    """A value in an error message: its text, its type, or the properties of a tensor."""
    if value is None or isinstance(value, str | Number | list | tuple | dict | set):
        return reprlib.repr(value)
    if not isinstance(value, Tensor):
        name = type(value).__name__
        return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    kind = type(value).__name__
    if value.is_nested:
        return f"a nested {kind}"
    shape = tuple(value.shape)
    return f"a {kind} of dtype {value.dtype} and shape {shape} on {value.device}"


def check_tensor(value: Any, name: str, expected: str) -> None:
    """Check that a value is a tensor with a shape.

    Raises:
        TypeError: It is something else, or a nested tensor.
    """
    if not isinstance(value, Tensor) or value.is_nested:
        raise TypeError(f"{name} is {describe(value)}, expected {expected}")


def check_memory(tensor: Tensor, name: str) -> None:
    """Check that a tensor has memory.

    Raises:
        ValueError: Its storage was freed, as by ``tensor.untyped_storage().resize_(0)``.
    """
    if is_freed(tensor):
        raise ValueError(f"the storage of {name} has been freed, expected memory")


def check_writable(tensor: Tensor, name: str) -> None:
    """Check that a step can write each element of a tensor separately.

    Raises:
        ValueError: The layout is not strided, several elements share memory, or the storage was
            freed.
    """
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has layout {tensor.layout}, expected torch.strided")
    if overlaps_itself(tensor):
        tensor = local(tensor)
        raise ValueError(
            f"{name} has elements that share memory (strides {tensor.stride()} for shape "
            f"{tuple(tensor.shape)}), expected separate elements"
        )
    check_memory(tensor, name)
