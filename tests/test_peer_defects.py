"""Defects of other implementations that this one must not have."""

import io

import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.benchmark.command import free_bytes

from .harness.helpers import counted_copies, gradients, parameters, train
from .harness.truth import Truth


@pytest.mark.parametrize("beta2", [0.99, 0.999, 0.9999, 0.99999])
def test_first_rectified_update_is_exact_however_large_beta2(beta2, backend):
    """torch's capturable form has an error of 58 % at 0.9999, and 13 updates at 0.99999."""
    [p] = parameters((100,), dtype=torch.float64)
    optimizer = FusedRAdam([p], lr=1.0, betas=(0.9, beta2), backend=backend)
    true = Truth(p.detach().numpy())
    updates = []
    for [g] in gradients([p], 6):
        before = p.detach().clone(), true.p
        p.grad = g.clone()
        optimizer.step()
        true.step(g.numpy(), lr=1.0, betas=(0.9, beta2))
        updates.append(((p.detach() - before[0]).numpy(), (true.p - before[1]).astype(float)))
    ours, exact = updates[-1]
    assert optimizer.rectification()[0].rectified
    assert abs(ours - exact).max() <= 1e-12 * abs(exact).max() + 1e-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gradient", [0.0, 1e-4])
def test_no_nan_where_eps_rounds_to_zero(dtype, gradient, backend):
    """torch's foreach form gives NaN at the first step with float16 parameters."""
    [p] = parameters((50,), dtype=dtype)
    before = p.detach().clone()
    optimizer = FusedRAdam([p], lr=1e-2, backend=backend)
    for _ in range(10):
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    assert p.isfinite().all()
    assert torch.equal(p, before) == (gradient == 0.0)


def test_torch_gives_nan_where_eps_rounds_to_zero():
    [p] = parameters((50,), dtype=torch.float16)
    p.grad = torch.zeros_like(p)
    torch.optim.RAdam([p], foreach=True).step()
    assert p.isnan().any()


def test_bfloat16_second_moment_decays(backend):
    """In bfloat16, a product with 0.999 rounds back to the same number."""
    [p] = parameters((8,), dtype=torch.bfloat16)
    optimizer = FusedRAdam([p], backend=backend)
    p.grad = torch.ones_like(p)
    optimizer.step()
    first = optimizer.state[p]["exp_avg_sq"].clone()
    for _ in range(300):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], first * 0.999**300)


def test_moments_of_16_bit_parameters_survive_a_checkpoint():
    """Optimizer.load_state_dict casts them to the parameter's dtype."""
    [p] = parameters((64,), dtype=torch.bfloat16)
    steps = gradients([p], 12)
    optimizer = train(FusedRAdam([p]), steps[:6])
    file = io.BytesIO()
    torch.save((p.detach(), optimizer.state_dict()), file)
    file.seek(0)
    saved, state_dict = torch.load(file, weights_only=True)
    q = torch.nn.Parameter(saved)
    resumed = FusedRAdam([q])
    resumed.load_state_dict(state_dict)
    assert resumed.state[q]["exp_avg_sq"].dtype == torch.float32
    train(optimizer, steps[6:])
    train(resumed, steps[6:])
    assert torch.equal(p, q)


def test_groups_with_different_betas_have_different_coefficients():
    """The official code caches the coefficients by the step count alone."""
    together = parameters((5,), (5,))
    alone = parameters((5,), (5,))
    betas = [(0.9, 0.999), (0.5, 0.9)]
    optimizer = FusedRAdam(
        [{"params": [p], "betas": b} for p, b in zip(together, betas, strict=True)]
    )
    single = [FusedRAdam([p], betas=b) for p, b in zip(alone, betas, strict=True)]
    for grads in gradients(together, 8):
        train(optimizer, [grads])
        for one, g in zip(single, grads, strict=True):
            train(one, [[g]])
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float32])
def test_step_counters_do_not_saturate(default, backend):
    """A bfloat16 counter stops at 256."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float32))
        optimizer = FusedRAdam([p], backend=backend)
        with counted_copies() as copied:
            train(optimizer, [[torch.ones(1, dtype=torch.float32)]] * 300)
    finally:
        torch.set_default_dtype(before)
    assert optimizer.state[p]["step"].dtype == torch.float32
    assert optimizer.state[p]["step"].item() == 300
    assert copied == []


def test_counter_is_float64_where_that_is_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = train(FusedRAdam([p]), [[torch.ones(1)]])
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.state[p]["step"].dtype == torch.float64


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    """DeepSpeed, optimi and gsplat use 32-bit indices."""
    if free_bytes("cpu") < 16 * 2**30:
        pytest.skip("needs 16 GiB of free memory")
    size = 2**31 + 1000
    p = torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16))
    tail = torch.randn(1000, dtype=torch.bfloat16)
    with torch.no_grad():
        p[-1000:] = tail
    p.grad = p.detach()  # shares memory, to save some
    FusedRAdam([p], lr=0.5, moments="param", backend="cpu").step()
    [q] = [torch.nn.Parameter(tail.clone())]
    q.grad = tail.clone()
    FusedRAdam([q], lr=0.5, moments="param", backend="eager").step()
    assert torch.equal(p[-1000:], q)
    assert not p[:1000].any()
