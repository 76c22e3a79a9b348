"""Every backend, instruction set and number of threads gives the same bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radam_fused import FusedRAdam
from radam_fused.backends.cpu import CpuLaunch, instruction_sets
from radam_fused.backends.eager import sqrt_rn

from .harness.helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    train,
)

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "complex128": torch.complex128,
    "complex64": torch.complex64,
}

# Sizes near the width of a vector, a tile of conversions and the part of a thread.
SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 3), (15,), (16,), (17,), (511,), (512,), (513,), (70_001,)]

# Values that are difficult to round, to scale and to compare.
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan")]


def both(params, steps, **options):
    """The same run with the kernel and with eager."""
    others = copies(params)
    kernel = train(FusedRAdam(params, backend="cpu", **options), steps)
    eager = train(FusedRAdam(others, backend="eager", **options), steps)
    return kernel, eager


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_kernel_has_the_bits_of_eager(options, dtype, instruction_set):
    params = parameters(*SHAPES, dtype=dtype)
    initial = copies(params)
    kernel = FusedRAdam(params, backend="cpu", **options)
    eager = FusedRAdam(initial, backend="eager", **options)
    for grads in gradients(params, 8):
        train(kernel, [grads])
        train(eager, [grads])
        assert_same_run(kernel, eager)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_any_number_of_threads_gives_the_same_bits(threads, dtype):
    shapes = [(200_003,), (7,), (0,), (100_000,), (64, 1001)]
    steps = gradients(parameters(*shapes, dtype=dtype), 8)
    before = torch.get_num_threads()
    runs = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            params = parameters(*shapes, dtype=dtype)
            runs.append(train(FusedRAdam(params, weight_decay=0.1, backend="cpu"), steps))
    finally:
        torch.set_num_threads(before)
    assert_same_run(*runs)


@pytest.mark.parametrize("param", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("in_param_dtype", [False, True])
def test_gradients_of_any_dtype_give_the_bits_of_eager(param, grad, in_param_dtype):
    params = parameters((600,), (3, 3), dtype=param)
    others = copies(params)
    optimizers = [
        FusedRAdam(ps, backend=backend, moments="param" if in_param_dtype else None, amsgrad=True)
        for ps, backend in ((params, "cpu"), (others, "eager"))
    ]
    for grads in gradients(params, 8):
        for optimizer in optimizers:
            for p, g in zip(optimizer.param_groups[0]["params"], grads, strict=True):
                p.grad_dtype = None
                p.grad = g.to(grad)
            optimizer.step()
    assert_same_run(*optimizers)


def numbers(dtype):
    """Numbers of a dtype, many of them special."""
    bits = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 32, torch.float16: 16}[dtype]
    return st.one_of(st.sampled_from(SPECIAL), st.floats(width=bits), st.floats(-4, 4, width=bits))


@st.composite
def runs(draw):
    dtype = draw(st.sampled_from(list(DTYPES.values())[:4]))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    count = int(np.prod(shape, dtype=int))
    values = st.lists(numbers(dtype), min_size=count, max_size=count)

    def tensor():
        return torch.tensor(draw(values), dtype=torch.float64).to(dtype).reshape(shape)

    options = {
        "lr": draw(st.sampled_from([0.0, 1e-3, 10.0])),
        "betas": draw(st.sampled_from([(0.9, 0.999), (0.0, 0.7), (0.5, 0.9)])),
        "eps": draw(st.sampled_from([0.0, 1e-8, 0.5])),
        "weight_decay": draw(st.sampled_from([0, 0.1])),
        "maximize": draw(st.booleans()),
        "amsgrad": draw(st.booleans()),
        "rectify": draw(st.booleans()),
        "rectify_threshold": draw(st.sampled_from([4.0, 5.0])),
        "exact_rectification": draw(st.booleans()),
        "degenerated_to_sgd": draw(st.booleans()),
        "eps_after_bias_correction": draw(st.booleans()),
        "decoupled_weight_decay": draw(st.booleans()),
        "decay_skipped_steps": draw(st.booleans()),
        "moments": draw(st.sampled_from([None, "param"])),
    }
    steps = draw(st.integers(1, 9))
    return torch.nn.Parameter(tensor()), [[tensor()] for _ in range(steps)], options


@pytest.mark.slow
@settings(max_examples=400)
@given(runs())
def test_the_kernel_has_the_bits_of_eager_on_drawn_runs(run):
    param, steps, options = run
    assert_same_run(*both([param], steps, **options))


@pytest.mark.parametrize("exponent", [-140, -126, -70, 0, 60, 120])
def test_extreme_magnitudes(exponent, instruction_set):
    params = parameters((1000,))
    steps = [[g * 2.0**exponent for g in grads] for grads in gradients(params, 10)]
    assert_same_run(*both(params, steps, eps=1e-30))


def test_nan_and_infinity_stay_in_their_element(backend):
    [p] = parameters((40,))
    before = p.detach().clone()
    optimizer = FusedRAdam([p], backend=backend, amsgrad=True)
    grad = torch.ones(40)
    grad[7], grad[21] = float("nan"), float("inf")
    for _ in range(8):
        p.grad = grad.clone()
        optimizer.step()
    bad = ~p.isfinite()
    assert bad.nonzero().flatten().tolist() == [7, 21]
    assert (p[~bad] < before[~bad]).all()
    assert optimizer.state[p]["max_exp_avg_sq"][7].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_every_16_bit_number_is_converted_as_in_torch(dtype, instruction_set):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    p = torch.nn.Parameter(every.clone())
    p.grad = torch.zeros_like(p)
    FusedRAdam([p], backend="cpu", lr=0.0).step()
    assert_same_bits(p, every)


def rounding_cases(dtype, count):
    """Float32 numbers of every kind, and as many near the ties of rounding to 16 bits."""
    patterns = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int64).to(torch.int32)
    # Ties and their neighbours.
    ties = patterns & ~0x1FFF | 0x1000 if dtype == torch.float16 else patterns & ~0xFFFF | 0x8000
    grads = torch.cat([patterns, ties, ties + 1, ties - 1]).view(torch.float32)
    grads[:4] = torch.tensor([65519.0, 65520.0, 2.0**-25, -(2.0**-24)])
    return grads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_rounding_to_16_bits_agrees_with_torch(dtype, instruction_set):
    """A moment in the parameter's dtype is one rounding of the gradient at beta1 = 0."""
    grads = rounding_cases(dtype, 200_000)
    p = torch.nn.Parameter(torch.zeros(grads.numel(), dtype=dtype))
    p.grad_dtype = None
    p.grad = grads
    optimizer = FusedRAdam([p], betas=(0.0, 0.9), backend="cpu", moments="param")
    optimizer.step()
    assert_same_bits(optimizer.state[p]["exp_avg"], grads.to(dtype))


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_the_square_root_is_correctly_rounded(kind):
    generator = np.random.default_rng(0)
    integer, real, top = {
        "float32": (np.int32, np.float32, 0x7F800000),
        "float64": (np.int64, np.float64, 0x7FF0000000000000),
    }[kind]
    everywhere = generator.integers(0, top, 500_000, dtype=integer).view(real)
    usual = generator.random(500_000).astype(real) * 4
    tiny = generator.integers(0, top >> 11, 500_000, dtype=integer).view(real)
    for values in (everywhere, usual, tiny):
        with np.errstate(all="ignore"):
            expected = np.sqrt(values)
        assert_same_bits(sqrt_rn(torch.from_numpy(values)), torch.from_numpy(expected))


def test_instruction_sets_are_those_of_the_machine(monkeypatch):
    assert instruction_sets()[-1] == "baseline"
    monkeypatch.setattr(CpuLaunch, "instruction_set", "sse9")
    params = parameters((3,))
    optimizer = FusedRAdam(params, backend="cpu")
    with pytest.raises(ValueError, match="'sse9' is unavailable"):
        train(optimizer, gradients(params, 1))
