"""What Triton's interpreter does to numbers, before anything is concluded from it."""

import contextlib

import numpy as np
import pytest
import torch

from .engines import repair_interpreter
from .helpers import same_bits

pytest.importorskip("triton")
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

TO_EVEN = ir.ROUNDING_MODE.RTNE


def patterns():
    """Float32 numbers of every kind; those halfway between two of 16 bits, and their neighbours."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = [
        bits & ~np.uint32(low) | np.uint32(half)
        for low, half in ((0xFFFF, 0x8000), (0x1FFF, 0x1000))
    ]
    near = [tie + np.uint32(d) for tie in ties for d in (0, 1, 0xFFFFFFFF)]
    return np.concatenate([bits, *near]).view(np.float32)


def interpreted(values, dtype):
    """The interpreter's conversion of float32 numbers."""
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    handle = interpreter.TensorHandle(values, tl.float32)
    with np.errstate(all="ignore"):
        data = interpreter.interpreter_builder.create_fp_trunc(handle, kind).data
    return torch.from_numpy(data.view(np.int16)).view(dtype)


def expected(values, dtype):
    return torch.from_numpy(values).to(dtype)


def test_float16_is_rounded_to_even():
    assert same_bits(interpreted(patterns(), torch.float16), expected(patterns(), torch.float16))


def test_bfloat16_is_not_unless_repaired(monkeypatch):
    """Should it become so, the repair in engines.py has to go."""
    values = np.array([1.00390625, 1.99609375], dtype=np.float32)  # halfway, and carrying over
    assert expected(values, torch.bfloat16).tolist() == [1.0, 2.0]
    assert not same_bits(interpreted(values, torch.bfloat16), expected(values, torch.bfloat16))
    repair_interpreter(monkeypatch)
    assert same_bits(interpreted(patterns(), torch.bfloat16), expected(patterns(), torch.bfloat16))


def read(dtype):
    """Every number of 16 bits, as the interpreter reads it."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    stored = every.numpy().view(np.uint16 if dtype == torch.bfloat16 else np.float16)
    handle = interpreter.TensorHandle(stored, kind)
    data = interpreter.interpreter_builder.create_fp_ext(handle, tl.float32).data
    return torch.from_numpy(data.view(np.float32)), every.view(dtype).float()


def test_float16_is_read_exactly():
    assert same_bits(*read(torch.float16))


def test_bfloat16_is_not_read_exactly_unless_repaired(monkeypatch):
    """It takes the smallest numbers, the subnormal ones, for zero."""
    found, expected = read(torch.bfloat16)
    assert not same_bits(found, expected)
    assert expected[(found != expected) & ~expected.isnan()].abs().max() < 2.0**-126
    repair_interpreter(monkeypatch)
    assert same_bits(*read(torch.bfloat16))


def test_a_promise_of_alignment_that_is_broken_is_noticed(monkeypatch):
    """A GPU would stop there; the interpreter only when repaired."""
    repair_interpreter(monkeypatch)
    kind = tl.pointer_type(tl.float32)
    for address, kept in ((32, True), (40, False)):
        handle = interpreter.TensorHandle(np.array([address], dtype=np.uint64), kind)
        with contextlib.nullcontext() if kept else pytest.raises(AssertionError, match="promised"):
            handle.set_attr("tt.divisibility", [16])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_division_and_root_are_numpy_s(kind):
    """Which are the processor's, correctly rounded."""
    generator = np.random.default_rng(0)
    x, y = generator.random((2, 1000)).astype(kind)
    dtype = tl.float32 if kind == np.float32 else tl.float64
    handles = [interpreter.TensorHandle(values, dtype) for values in (x, y)]
    builder = interpreter.interpreter_builder
    assert (builder.create_precise_divf(*handles).data == x / y).all()
    assert (builder.create_precise_sqrt(handles[0]).data == np.sqrt(x)).all()
