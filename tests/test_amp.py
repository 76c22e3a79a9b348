"""Gradient scaling: the step unscales, and changes nothing after an overflow."""

import pytest
import torch
from torch.amp import GradScaler

from radam_fused import FusedRAdam

from .harness.helpers import assert_same_bits, copies, gradients, parameters
from .test_device_bits import assert_same_on_both, on, step_both


def scaled(optimizer, grads, scale=1024.0, found_inf=0.0):
    """Take a step as a gradient scaler does."""
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.grad_scale = torch.tensor(scale, device=device)
    optimizer.found_inf = torch.tensor(found_inf, device=device)
    try:
        step_both([optimizer], [g * scale for g in grads])
    finally:
        del optimizer.grad_scale, optimizer.found_inf


@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1, "amsgrad": True}])
def test_a_scaled_step_is_the_step(options, backend):
    params = parameters((5, 3), (1025,), (0,))
    ours = FusedRAdam(copies(params), backend=backend, **options)
    plain = FusedRAdam(copies(params), backend="cpu", **options)
    for grads in gradients(params, 8):
        scaled(ours, grads)
        step_both([plain], grads)
        assert_same_on_both(ours, plain)


def test_overflow_changes_nothing(backend):
    params = parameters((5, 3), (1025,))
    ours = FusedRAdam(copies(params), backend=backend, weight_decay=0.1)
    plain = FusedRAdam(copies(params), backend="cpu", weight_decay=0.1)
    for t, grads in enumerate(gradients(params, 12)):
        if t % 3 == 1:
            scaled(ours, [torch.full_like(g, float("inf")) for g in grads], found_inf=1.0 + t % 2)
        else:
            scaled(ours, grads)
            step_both([plain], grads)
        assert_same_on_both(ours, plain)
    assert plain.state[plain.param_groups[0]["params"][0]]["step"] == 8


def test_a_scaler_without_gradients_works(backend):
    """torch's scaler sets the number 0 instead of a tensor."""
    params = parameters((5,))
    optimizer = FusedRAdam(params, backend=backend)
    step_both([optimizer], gradients(params, 1)[0])
    before = params[0].detach().clone()
    params[0].grad = None
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), 0
    optimizer.step()
    assert_same_bits(params[0].detach(), before)


def test_the_gradients_stay_scaled(backend):
    [p] = parameters((5,))
    optimizer = FusedRAdam([p], backend=backend)
    scaled(optimizer, [torch.ones(5)])
    assert (p.grad == 1024).all()


def test_steps_with_and_without_a_scaler(backend):
    params = parameters((33,))
    ours = FusedRAdam(copies(params), backend=backend)
    plain = FusedRAdam(copies(params), backend="cpu")
    for t, grads in enumerate(gradients(params, 9)):
        if t % 3:
            scaled(ours, grads)
        else:
            step_both([ours], grads)
        step_both([plain], grads)
    assert_same_on_both(ours, plain)


def test_a_scaled_step_does_not_wait_for_the_device(host_backend, monkeypatch):
    params = parameters((33,))
    optimizer = FusedRAdam(params, backend=host_backend.name)
    scaled(optimizer, [torch.ones(33)])
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("waits for the device"))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: pytest.fail("waits"))
    for _ in range(3):
        scaled(optimizer, [torch.ones(33)])


def train(device, autocast, backend, steps=12):
    """Train a small model with autocast and a scaler; one step overflows."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model.to(device)
    data = torch.randn(steps, 16, 6).to(device)
    optimizer = FusedRAdam(model.parameters(), lr=0.1, backend=backend)
    scaler = GradScaler(device, init_scale=256.0, growth_interval=4)
    scales = []
    for t in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=autocast):
            loss = model(data[t]).square().mean()
        if t == 5:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        if t % 2:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert not hasattr(optimizer, "found_inf")
    return model, optimizer, scales


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_grad_scaler_on_the_cpu(backend):
    model, optimizer, scales = train("cpu", torch.bfloat16, backend)
    assert all(p.isfinite().all() for p in model.parameters())
    assert {float(state["step"]) for state in optimizer.state.values()} == {11.0}
    assert min(scales) < scales[4]
    other, _, _ = train("cpu", torch.bfloat16, "cpu")
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())


def test_grad_scaler_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model, optimizer, scales = train("cuda", torch.float16, "cuda")
    assert all(p.isfinite().all() for p in model.parameters())
    for state in optimizer.state.values():
        assert state["step"].device.type == "cuda"
        assert state["step"].item() == 11
    assert min(scales) < scales[4]


def test_without_found_inf_an_overflow_reaches_the_parameters(backend):
    params = parameters((5,))
    ours = FusedRAdam(copies(params), backend=backend)
    scaled(ours, [torch.full((5,), float("inf"))], found_inf=0.0)
    [p] = ours.param_groups[0]["params"]
    assert not p.isfinite().all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_scaled_steps_on_a_gpu_stay_on_it():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    params = on("cuda", parameters((33,)))
    optimizer = FusedRAdam(params, backend="cuda")
    scaled(optimizer, [torch.ones(33, device="cuda")])
    torch.cuda.set_sync_debug_mode("error")
    try:
        params[0].grad = torch.ones_like(params[0])
        optimizer.grad_scale = torch.ones((), device="cuda")
        optimizer.found_inf = torch.zeros((), device="cuda")
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_scale_of_several_elements_raises(host_backend):
    params = parameters((5,))
    optimizer = FusedRAdam(params, backend=host_backend.name)
    before = params[0].detach().clone()
    params[0].grad = torch.ones(5)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(2), torch.zeros(())
    with pytest.raises(ValueError, match=r"grad_scale has shape \(2,\), expected one element"):
        optimizer.step()
    assert_same_bits(params[0].detach(), before)
