"""The norm of all gradients, in an order that every backend shares."""

from math import sqrt

import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.backends.cpu import CpuLaunch
from radam_fused.sums import fold, fold_in_torch

from .harness.clipping import FINE, SIZES, true_norm, two_groups
from .harness.helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    train,
)
from .test_bits import DTYPES
from .test_device_bits import assert_same_on_both, step_both


def test_a_norm_by_hand(backend):
    p, q = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 1))
    optimizer = FusedRAdam([p, q], max_grad_norm=6.5, backend=backend)
    assert optimizer.grad_norm is None
    p.grad, q.grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
    optimizer.step()
    assert optimizer.grad_norm.item() == 13.0
    assert (optimizer.grad_norm.dtype, optimizer.grad_norm.shape) == (torch.float64, ())
    coefficient = 6.5 / (13.0 + 1e-6)
    expected = torch.tensor([3.0, -4.0], dtype=torch.float64) * coefficient * 0.1
    torch.testing.assert_close(optimizer.state[p]["exp_avg"].double(), expected, rtol=2e-7, atol=0)
    p.grad, q.grad = torch.tensor([0.3, 0.4]), torch.zeros(1)
    optimizer.step()  # below the limit
    assert optimizer.grad_norm.item() == pytest.approx(0.5, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_backend_has_the_same_bits(options, dtype, backend):
    params = parameters(*SIZES, dtype=dtype)
    ours, cpu = (
        FusedRAdam(two_groups(copies(params)), max_grad_norm=2.0, backend=name, **options)
        for name in (backend, "cpu")
    )
    for grads in gradients(params, 3):
        grads = [*grads[::2], *grads[1::2]]
        step_both([ours, cpu], grads)
        assert_same_bits(ours.grad_norm, cpu.grad_norm, "norm")
        real = [torch.view_as_real(g) if g.is_complex() else g for g in grads]
        assert ours.grad_norm.item() == pytest.approx(true_norm(real), rel=FINE)
    assert_same_on_both(ours, cpu)


def test_a_parameter_of_many_chunks(backend, request):
    """More than 1,024 chunks are summed in two levels."""
    if "ptx" in request.node.name:
        pytest.skip("takes too long")
    params = parameters((1024 * 1024 + 3,), (2,))
    ours, cpu = (FusedRAdam(copies(params), max_grad_norm=1.0, backend=b) for b in (backend, "cpu"))
    [grads] = gradients(params, 1)
    step_both([ours, cpu], grads)
    assert_same_bits(ours.grad_norm, cpu.grad_norm)
    assert ours.grad_norm.item() == pytest.approx(true_norm(grads), rel=FINE)
    assert_same_on_both(ours, cpu)


def test_many_parameters(backend, request):
    """More than 1,024 parameters are summed in two levels."""
    count = 30 if "ptx" in request.node.name else 1500
    params = parameters(*[(1 + i % 3,) for i in range(count)])
    ours, cpu = (FusedRAdam(copies(params), max_grad_norm=1.0, backend=b) for b in (backend, "cpu"))
    [grads] = gradients(params, 1)
    step_both([ours, cpu], grads)
    assert_same_bits(ours.grad_norm, cpu.grad_norm)
    assert_same_on_both(ours, cpu)


def test_gradients_of_several_dtypes(backend):
    """A launch for each dtype; the parameters are summed in the order of the groups."""
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64] * 3
    params = [parameters((700,), dtype=dtype, seed=i)[0] for i, dtype in enumerate(dtypes)]
    ours, cpu = (FusedRAdam(copies(params), max_grad_norm=1.0, backend=b) for b in (backend, "cpu"))
    for grads in gradients(params, 2):
        step_both([ours, cpu], grads)
        assert_same_bits(ours.grad_norm, cpu.grad_norm)
        assert ours.grad_norm.item() == pytest.approx(true_norm(grads), rel=FINE)
    assert_same_on_both(ours, cpu)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_instruction_sets(threads, instruction_set, monkeypatch):
    params = parameters((300_001,), (1025, 33), (7,))
    [grads] = gradients(params, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = train(FusedRAdam(copies(params), max_grad_norm=1.0, backend="cpu"), [grads])
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(CpuLaunch, "instruction_set", None)
    eager = train(FusedRAdam(copies(params), max_grad_norm=1.0, backend="eager"), [grads])
    assert_same_bits(ours.grad_norm, eager.grad_norm)
    assert_same_run(ours, eager)


def test_flat_buffers_change_no_bit(backend):
    params = parameters(*SIZES)
    steps = gradients(params, 8)
    flat, scattered = (
        train(FusedRAdam(copies(params), max_grad_norm=1.0, flatten=f, backend=backend), steps)
        for f in (True, False)
    )
    assert_same_bits(flat.grad_norm, scattered.grad_norm)
    assert_same_run(flat, scattered)


@pytest.mark.parametrize(
    "strides", [(1, 40), (50, 1), (120, 2)], ids=["transposed", "contiguous", "gaps"]
)
def test_a_sum_follows_the_memory_of_the_parameter(strides, backend):
    memory = parameters((40 * 120,))[0].detach()
    p = torch.nn.Parameter(memory.as_strided((40, 50), strides))
    optimizer = FusedRAdam([p], max_grad_norm=1.0, backend=backend)
    [[grad]] = gradients([p], 1)
    p.grad = grad
    optimizer.step()
    dense = torch.empty_like(p, memory_format=torch.preserve_format).copy_(grad)
    in_order = dense.as_strided((2000,), (1,)).double()
    assert optimizer.grad_norm.item() == sqrt(fold(in_order.square()).item())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1023, 1024, 1025, 5000, 1024 * 1024 + 1])
def test_the_order_of_a_sum(count):
    numbers = torch.rand(count, dtype=torch.float64)
    assert_same_bits(fold(numbers), fold_in_torch(numbers))
    if count <= 1024:
        padded = [*numbers.tolist(), *[0.0] * (1024 - count)]
        while len(padded) > 1:
            half = len(padded) // 2
            padded = [a + b for a, b in zip(padded[:half], padded[half:], strict=True)]
        assert fold(numbers).item() == padded[0]


def test_the_order_of_a_sum_matters():
    """The comparisons of bits would notice another order."""
    numbers = torch.rand(4096, dtype=torch.float64)
    sums = {fold(numbers[torch.randperm(4096)]).item() for _ in range(10)}
    assert len(sums) > 1


@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-30, 1e30, 3e38])
def test_extreme_gradients(value, backend):
    """The squares of float32 gradients neither overflow nor vanish."""
    [p] = parameters((1500,))
    optimizer = FusedRAdam([p], max_grad_norm=1.0, backend=backend)
    p.grad = torch.full((1500,), value)
    optimizer.step()
    exact = float(p.grad[0].double().abs()) * sqrt(1500)
    assert optimizer.grad_norm.item() == pytest.approx(exact, rel=FINE)
    assert p.isfinite().all()


def test_gradients_are_not_written(backend):
    params = parameters((30,), (7,))
    optimizer = FusedRAdam(params, max_grad_norm=0.1, backend=backend)
    [grads] = gradients(params, 1)
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    versions = [p.grad._version for p in params]
    optimizer.step()
    assert versions == [p.grad._version for p in params]
    for p, g in zip(params, grads, strict=True):
        assert_same_bits(p.grad, g)


def test_parameters_without_a_gradient_count_as_zeros(backend):
    params = parameters((30,), (7,), (40,))
    optimizer = FusedRAdam(params, max_grad_norm=1.0, backend=backend)
    for grads in gradients(params, 3):
        step_both([optimizer], [grads[0], None, grads[2]])
        assert optimizer.grad_norm.item() == pytest.approx(true_norm(grads[::2]), rel=FINE)
    step_both([optimizer], [None, None, None])
    assert optimizer.grad_norm == 0
    step_both([optimizer], gradients(params, 1)[0])


def test_a_parameter_that_is_listed_twice_counts_once(backend):
    [p] = parameters((30,))
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = FusedRAdam([p, p], max_grad_norm=1.0, backend=backend)
    [[grad]] = gradients([p], 1)
    p.grad = grad
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(true_norm([grad]), rel=FINE)


def test_parameters_on_two_devices(gpu):
    """The norm is that of all gradients, and lies on the GPU."""
    params = parameters((30,), (1500,), (7, 3))
    ours = [
        torch.nn.Parameter(p.detach().to(gpu.device if i % 2 else "cpu"))
        for i, p in enumerate(params)
    ]
    optimizer = FusedRAdam(ours, max_grad_norm=1.0)
    cpu = FusedRAdam(copies(params), max_grad_norm=1.0, backend="cpu")
    for grads in gradients(params, 8):
        step_both([optimizer, cpu], grads)
        assert optimizer.grad_norm.device == gpu.device
        assert_same_bits(optimizer.grad_norm.cpu(), cpu.grad_norm)
    assert_same_on_both(optimizer, cpu)
