"""Gradient scaling: the step unscales, and changes nothing after an overflow."""

import copy

import pytest
import torch
from torch.amp import GradScaler

from radam_fused import FusedAdamW, FusedRAdam

from .harness.backends import Gpu
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
    ours = FusedRAdam(copies(params), backend=backend, fused=True, **options)
    plain = FusedRAdam(copies(params), backend="cpu", **options)
    for grads in gradients(params, 8):
        scaled(ours, grads)
        step_both([plain], grads)
        assert_same_on_both(ours, plain)


def test_overflow_changes_nothing(backend):
    params = parameters((5, 3), (1025,))
    ours = FusedRAdam(copies(params), backend=backend, weight_decay=0.1, fused=True)
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
    optimizer = FusedRAdam(params, backend=backend, fused=True)
    step_both([optimizer], gradients(params, 1)[0])
    before = params[0].detach().clone()
    params[0].grad = None
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), 0
    optimizer.step()
    assert_same_bits(params[0].detach(), before)


def test_the_gradients_stay_scaled(backend):
    [p] = parameters((5,))
    optimizer = FusedRAdam([p], backend=backend, fused=True)
    scaled(optimizer, [torch.ones(5)])
    assert (p.grad == 1024).all()


def test_steps_with_and_without_a_scaler(backend):
    params = parameters((33,))
    ours = FusedRAdam(copies(params), backend=backend, fused=True)
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
    optimizer = FusedRAdam(params, backend=host_backend.name, fused=True)
    scaled(optimizer, [torch.ones(33)])
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("waits for the device"))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: pytest.fail("waits"))
    for _ in range(3):
        scaled(optimizer, [torch.ones(33)])


def train(device, autocast, backend, fused, steps=12):
    """Train a small model with autocast and a scaler; one step overflows."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model.to(device)
    data = torch.randn(steps, 16, 6).to(device)
    optimizer = FusedRAdam(model.parameters(), lr=0.1, backend=backend, fused=fused)
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
@pytest.mark.parametrize("fused", [None, False, True])
def test_grad_scaler_on_the_cpu(fused, backend):
    model, optimizer, scales = train("cpu", torch.bfloat16, backend, fused)
    assert all(p.isfinite().all() for p in model.parameters())
    assert {float(state["step"]) for state in optimizer.state.values()} == {11.0}
    assert min(scales) < scales[4]
    other, _, _ = train("cpu", torch.bfloat16, "cpu", True)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler_on_a_gpu(fused):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model, optimizer, scales = train("cuda", torch.float16, "cuda", fused)
    assert all(p.isfinite().all() for p in model.parameters())
    for state in optimizer.state.values():
        assert state["step"].device == (Gpu.device if fused else torch.device("cpu"))
        assert state["step"].item() == 11
    assert min(scales) < scales[4]


def test_without_found_inf_an_overflow_reaches_the_parameters(backend):
    params = parameters((5,))
    ours = FusedRAdam(copies(params), backend=backend, fused=True)
    scaled(ours, [torch.full((5,), float("inf"))], found_inf=0.0)
    [p] = ours.param_groups[0]["params"]
    assert not p.isfinite().all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_scaled_steps_on_a_gpu_stay_on_it():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    params = on("cuda", parameters((33,)))
    optimizer = FusedRAdam(params, backend="cuda", fused=True)
    scaled(optimizer, [torch.ones(33, device="cuda")])
    torch.cuda.set_sync_debug_mode("error")
    try:
        params[0].grad = torch.ones_like(params[0])
        for _ in range(3):
            optimizer.grad_scale = torch.ones((), device="cuda")
            optimizer.found_inf = torch.zeros((), device="cuda")
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_scale_of_several_elements_raises(host_backend):
    params = parameters((5,))
    optimizer = FusedRAdam(params, backend=host_backend.name, fused=True)
    before = params[0].detach().clone()
    params[0].grad = torch.ones(5)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(2), torch.zeros(())
    with pytest.raises(ValueError, match=r"grad_scale has shape \(2,\), expected one element"):
        optimizer.step()
    assert_same_bits(params[0].detach(), before)


@pytest.mark.parametrize("cls", [FusedRAdam, FusedAdamW])
def test_by_default_the_scaler_does_everything(cls):
    for fused in (None, False):
        optimizer = cls(parameters((5,)), fused=fused)
        assert not optimizer._step_supports_amp_scaling
    optimizer = cls(parameters((5,)), fused=True)
    assert optimizer._step_supports_amp_scaling
    assert copy.deepcopy(optimizer)._step_supports_amp_scaling
    for options in ({"foreach": True}, {"differentiable": True}):
        with pytest.raises(RuntimeError, match="fused"):
            cls(parameters((5,)), fused=True, **options)


class Proxy:
    """A wrapper whose attributes fall through, as those of Fabric and of accelerate."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self):
        self.optimizer.step()


def test_a_wrapper_whose_attributes_fall_through_gets_unscaled_gradients(backend):
    params = parameters((33,))
    ours, theirs = copies(params), copies(params)
    optimizer = FusedRAdam(ours, backend=backend, lr=0.1)
    wrapped, rival = Proxy(optimizer), torch.optim.RAdam(theirs, lr=0.1)
    for opt, tensors in ((wrapped, ours), (rival, theirs)):
        scaler = GradScaler("cpu", init_scale=2.0**16)
        for grads in gradients(params, 8):
            loss = sum((p * g).sum() for p, g in zip(tensors, grads, strict=True))
            tensors[0].grad = None
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


def test_a_skipped_step_does_not_call_the_optimizer():
    """accelerate's step_was_skipped depends on it."""
    [p] = parameters((3,))
    optimizer = FusedRAdam([p])
    scaler, calls = GradScaler("cpu"), []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    scaler.scale(p.sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert not calls


def test_an_error_inside_the_step_leaves_no_scale_behind(backend):
    [p] = parameters((3,))
    optimizer = FusedRAdam([p], backend=backend, fused=True)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="Invalid learning rate"):
        scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    optimizer.param_groups[0]["lr"] = 0.5
    before = p.detach().clone()
    p.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(before - p.detach(), torch.full((3,), 0.5))
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()


def test_a_step_outside_of_a_scaler_does_not_divide(backend):
    """The scale belongs to one step."""
    [p], [q] = parameters((3,)), parameters((3,))
    ours, plain = FusedRAdam([p], backend=backend, fused=True), FusedRAdam([q], backend="cpu")
    ours.grad_scale = torch.tensor(8.0)
    p.grad, q.grad = torch.full((3,), 8.0), torch.ones(3)
    ours.step()
    plain.step()
    p.grad = torch.ones(3)
    ours.step()
    plain.step()
    assert_same_bits(p.detach(), q.detach())
