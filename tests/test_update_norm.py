"""track_update_norm and per_parameter_norms: what a step has done to the parameters."""

import copy
import pickle
from math import inf, nan, sqrt

import pytest
import torch

from radam_fused import FusedAdamW, FusedRAdam
from radam_fused.backends.cpu import CpuLaunch

from .harness.clipping import FINE, SIZES, scaled, true_norm, two_groups
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
from .test_device_bits import assert_same_on_both, on, step_both
from .test_graphs import Loop

BOTH = {"track_update_norm": True, "per_parameter_norms": True}


def real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def differences(before, optimizer):
    """The differences to the stored parameters, rounded to the dtype of the update."""
    pairs = [
        (real(p.detach().cpu()), real(old))
        for p, old in zip(params_of(optimizer), before, strict=True)
    ]
    wide = [p.double() if p.dtype == torch.float64 else p.float() for p, _ in pairs]
    return [a - b.to(a.dtype) for a, (_, b) in zip(wide, pairs, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_norm_of_the_differences(options, dtype, backend):
    params = parameters(*SIZES, dtype=dtype)
    options = {"lr": 0.1, **BOTH, **options}
    ours, cpu, plain = (
        FusedRAdam(two_groups(copies(params)), backend=name, **more)
        for name, more in ((backend, options), ("cpu", options), (backend, {**options, **OFF}))
    )
    assert ours.update_norm is ours.update_norms is ours.grad_norms is None
    for grads in gradients(params, 3):
        grads = [*grads[::2], *grads[1::2]]
        before = [p.detach().cpu().clone() for p in params_of(ours)]
        step_both([ours, cpu, plain], grads)
        made = differences(before, ours)
        assert ours.update_norm.item() == pytest.approx(true_norm(made), rel=FINE)
        for norms, tensors in ((ours.update_norms, made), (ours.grad_norms, map(real, grads))):
            expected = [true_norm([tensor]) for tensor in tensors]
            assert norms.tolist() == pytest.approx(expected, rel=FINE)
        for name in ("update_norm", "update_norms", "grad_norm", "grad_norms"):
            assert_same_bits(getattr(ours, name).cpu(), getattr(cpu, name), name)
    assert_same_on_both(ours, cpu)
    assert_same_on_both(ours, plain)


OFF = dict.fromkeys(BOTH, False)


def test_a_parameter_of_many_chunks(backend, request):
    if "ptx" in request.node.name:
        pytest.skip("takes too long")
    params = parameters((1024 * 1024 + 3,), (2,))
    ours, cpu = (FusedRAdam(copies(params), backend=b, **BOTH) for b in (backend, "cpu"))
    [grads] = gradients(params, 1)
    step_both([ours, cpu], grads)
    for name in ("update_norm", "update_norms", "grad_norms"):
        assert_same_bits(getattr(ours, name), getattr(cpu, name), name)
    made = differences(params, ours)
    assert ours.update_norm.item() == pytest.approx(true_norm(made), rel=FINE)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_instruction_sets(threads, instruction_set, monkeypatch):
    params = parameters((300_001,), (1025, 33), (7,), dtype=torch.bfloat16)
    [grads] = gradients(params, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = train(FusedRAdam(copies(params), backend="cpu", **BOTH), [grads])
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(CpuLaunch, "instruction_set", None)
    eager = train(FusedRAdam(copies(params), backend="eager", **BOTH), [grads])
    assert_same_bits(ours.update_norm, eager.update_norm)
    assert_same_run(ours, eager)


def test_flat_buffers_change_no_bit(backend):
    params = parameters(*SIZES)
    steps = gradients(params, 8)
    flat, scattered = (
        train(FusedRAdam(copies(params), flatten=f, backend=backend, **BOTH), steps)
        for f in (True, False)
    )
    for name in ("update_norm", "update_norms", "grad_norms"):
        assert_same_bits(getattr(flat, name), getattr(scattered, name), name)
    assert_same_run(flat, scattered)


def test_it_takes_no_norm_of_gradients_alone(backend):
    params = parameters((30,), (7,))
    optimizer = FusedRAdam(params, track_update_norm=True, backend=backend)
    train(optimizer, gradients(params, 2))
    assert optimizer.grad_norm is optimizer.grad_norms is optimizer.update_norms is None
    assert optimizer.update_norm > 0


@pytest.mark.parametrize("value", [inf, nan])
def test_a_skipped_step_has_no_update(value, backend):
    params = parameters((30,), (7,))
    with torch.no_grad():
        params[0][3] = inf  # inf - inf is not 0
    ours = FusedRAdam(copies(params), skip_nonfinite=True, backend=backend, **BOTH)
    first, second = gradients(params, 2)
    step_both([ours], first)
    assert not ours.update_norm.isfinite()
    second[1][2] = value
    step_both([ours], second)
    assert ours.update_norm == 0
    assert ours.update_norms.tolist() == [0, 0]


def test_a_step_without_gradients(backend):
    params = parameters((30,), (7,))
    optimizer = train(FusedRAdam(params, backend=backend, **BOTH), gradients(params, 1))
    step_both([optimizer], [None, None])
    assert optimizer.update_norm == optimizer.grad_norm == 0
    step_both([optimizer], [None, torch.ones(7)])
    norms = optimizer.update_norms.tolist()
    assert norms[0] == 0
    assert norms[1] == optimizer.update_norm.item()
    assert optimizer.grad_norms.tolist() == [0, sqrt(7)]


def test_scaled_gradients(backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), fused=True, backend=backend, **BOTH)
    plain = FusedRAdam(copies(params), backend="cpu", **BOTH)
    for grads in gradients(params, 7):
        scaled(ours, grads, 4096.0)
        step_both([plain], grads)
        for name in ("update_norm", "update_norms", "grad_norms"):
            assert_same_bits(getattr(ours, name).cpu(), getattr(plain, name), name)


def test_a_result_is_a_new_tensor(backend):
    params = parameters((30,), (7,))
    optimizer = FusedRAdam(params, backend=backend, **BOTH)
    names = ("grad_norm", "update_norm", "grad_norms", "update_norms")
    first, second = gradients(params, 2)
    step_both([optimizer], first)
    held = [getattr(optimizer, name) for name in names]
    kept = [tensor.clone() for tensor in held]
    step_both([optimizer], second)
    for name, tensor, copied in zip(names, held, kept, strict=True):
        assert_same_bits(tensor, copied)
        assert not torch.equal(getattr(optimizer, name), copied)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_replays_track_the_update(device_backend):
    params = parameters(*[(1 + 37 * i,) for i in range(20)])
    loop = Loop(device_backend, params, max_grad_norm=1.0, track_update_norm=True)
    steps = gradients(params, 9)
    loop.step(steps[0])
    graph = loop.capture()
    for grads in steps[1:]:
        loop.replay(graph, grads)
        loop.device_backend.synchronize()
        assert_same_bits(loop.optimizer.update_norm.cpu(), loop.reference.update_norm)
    loop.check()


def test_no_wait(gpu):
    """Neither a step nor a look at its norms waits for the device."""
    params = on(gpu.device, parameters((30,), (700,)))
    optimizer = FusedRAdam(params, max_grad_norm=1.0, skip_nonfinite=True, backend=gpu.name, **BOTH)
    first, second = gradients(params, 2)
    step_both([optimizer], first)
    for p, g in zip(params, second, strict=True):
        p.grad.copy_(g)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        held = optimizer.grad_norm, optimizer.update_norm, optimizer.skipped_steps
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(tensor.device == gpu.device for tensor in held)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_track_too(copied):
    params = parameters((5,), (7,))
    other = copied(train(FusedAdamW(params, **BOTH), gradients(params, 1)))
    train(other, gradients(params, 1))
    assert other.update_norm > 0
    with pytest.raises(AttributeError, match="track_update_norm is fixed by the constructor"):
        other.track_update_norm = False


class Stale(FusedRAdam):
    """Tracks the step before the last one."""

    @property
    def update_norm(self):
        return self.held

    def step(self, closure=None):
        self.held = FusedRAdam.update_norm.fget(self)
        super().step(closure)


class OfGradients(FusedRAdam):
    @property
    def update_norm(self):
        return self.grad_norm * self.param_groups[0]["lr"]


@pytest.mark.parametrize("wrong", [Stale, OfGradients])
def test_a_wrong_norm_is_noticed(wrong):
    params = parameters((30,), (7,))
    optimizer = wrong(copies(params), **BOTH)
    for grads in gradients(params, 3):
        before = [p.detach().clone() for p in params_of(optimizer)]
        step_both([optimizer], grads)
    exact = true_norm(differences(before, optimizer))
    assert optimizer.update_norm.item() != pytest.approx(exact, rel=1e-3)
