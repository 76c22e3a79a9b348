"""Facts about one tensor: whether its elements share memory, and its text in messages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radam_fused import FusedRAdam
from radam_fused.tensors import describe, overlaps_itself

from .harness.helpers import assert_same_bits, gradients, train

DIMENSIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=3)


def strided(dimensions):
    shape, strides = [size for size, _ in dimensions], [stride for _, stride in dimensions]
    return torch.zeros(64).as_strided(shape, strides)


def offsets(tensor):
    found = [0] if tensor.numel() else []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = [offset + i * stride for offset in found for i in range(size)]
    return found


@given(DIMENSIONS)
def test_elements_that_share_memory_are_found(dimensions):
    tensor = strided(dimensions)
    places = offsets(tensor)
    assert overlaps_itself(tensor) == (len(set(places)) < len(places))


@given(DIMENSIONS)
def test_the_kernels_find_the_same(dimensions):
    """The extension decides for a parameter that got other memory between two steps."""
    tensor = strided(dimensions)
    p = torch.nn.Parameter(torch.zeros(tensor.shape))
    optimizer = train(FusedRAdam([("p", p)], backend="cpu"), gradients([p], 1))
    p.data = tensor
    if not overlaps_itself(tensor):
        train(optimizer, gradients([p], 1))
        return
    with pytest.raises(ValueError, match="parameter 'p' has elements that share memory"):
        train(optimizer, gradients([p], 1))


def test_interleaved_rows_without_shared_elements_are_stepped(backend):
    memory = torch.arange(8.0)
    p = torch.nn.Parameter(memory.as_strided((2, 2), (2, 3)))  # at 0, 3, 2 and 5
    twin = torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    grads = gradients([p], 3)
    train(FusedRAdam([p], backend=backend), grads)
    train(FusedRAdam([twin], backend="cpu"), grads)
    assert_same_bits(p.detach().contiguous(), twin.detach())
    assert memory[[1, 4, 6, 7]].tolist() == [1, 4, 6, 7]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("1e-3", "'1e-3'"),
        ("x" * 100, "'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
        ([1, 2], "[1, 2]"),
        (iter([]), "a list_iterator"),
        (torch.zeros(2, 3), "a Tensor of dtype torch.float32 and shape (2, 3) on cpu"),
    ],
    ids=["none", "text", "long text", "list", "object", "tensor"],
)
def test_a_value_in_a_message_is_short(value, text):
    assert describe(value) == text
