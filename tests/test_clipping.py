"""max_grad_norm: the gradients are clipped inside the step."""

import copy
import pickle
from math import inf, nan

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from radam_fused import PRESETS, FusedAdam, FusedAdamW, FusedRAdam, rectification

from .harness.clipping import FINE, SIZES, ByTorch, exact_tensors, scaled, true_norm, two_groups
from .harness.helpers import (
    TORCH_OPTIONS,
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    train,
)
from .harness.truth import REAL, Truth
from .test_device_bits import assert_same_on_both, on, step_both
from .test_graphs import Loop

# The largest relative and absolute differences to the roundings of torch.
CLOSE = {
    torch.float32: (1e-5, 1e-6),
    torch.float64: (1e-9, 1e-12),
    torch.complex64: (1e-5, 1e-6),
    torch.bfloat16: (2e-2, 2e-2),
}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", TORCH_OPTIONS)
def test_follows_the_sequence_of_torch(name, dtype, backend):
    params = parameters(*SIZES, dtype=dtype)
    options = {"max_grad_norm": 1.0, **TORCH_OPTIONS[name]}
    ours = FusedRAdam(copies(params), backend=backend, **options)
    theirs = ByTorch(copies(params), **options)
    rtol, atol = CLOSE[dtype]
    for grads in gradients(params, 8):
        step_both([ours, theirs], grads)
        norm = theirs.grad_norm.double()
        torch.testing.assert_close(ours.grad_norm, norm, rtol=rtol, atol=0)
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


@pytest.mark.parametrize("value", [inf, -inf, nan])
def test_without_skipping_a_norm_that_is_not_finite_clips_as_torch_does(value, backend):
    params = parameters((5,), (3,))
    ours = FusedRAdam(copies(params), max_grad_norm=1.0, backend=backend)
    theirs = ByTorch(copies(params), max_grad_norm=1.0)
    [grads] = gradients(params, 1)
    grads[0][2] = value
    step_both([ours, theirs], grads)
    assert not ours.grad_norm.isfinite()
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_an_infinite_limit_only_takes_the_norm(options, backend):
    params = parameters(*SIZES)
    steps = gradients(params, 8)
    steps[3][0][0] = inf
    ours, plain = (
        train(FusedRAdam(copies(params), backend=backend, **options, **more), steps)
        for more in ({"max_grad_norm": inf}, {})
    )
    assert ours.grad_norm.item() == pytest.approx(true_norm(steps[-1]), rel=FINE)
    assert_same_on_both(ours, plain)


def test_the_limit_changes_between_steps(backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), max_grad_norm=1.0, backend=backend)
    eager = FusedRAdam(copies(params), backend="eager")
    for limit, grads in zip((1.0, 0.5, None, inf, 2, 0.0), gradients(params, 6), strict=True):
        ours.max_grad_norm = limit
        norm = true_norm(grads)
        factor = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        step_both([ours], grads)
        step_both([eager], [(g.double() * factor).float() for g in grads])
    for p, q in zip(ours.param_groups[0]["params"], eager.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    "make",
    [
        FusedAdam,
        FusedAdamW,
        *(lambda p, n=n, **o: FusedRAdam(p, **PRESETS[n], **o) for n in PRESETS),
    ],
)
def test_every_optimizer_clips(make, backend):
    params = parameters((30,), (7,))
    ours = make(copies(params), max_grad_norm=1.0, backend=backend)
    eager = make(copies(params), max_grad_norm=1.0, backend="eager")
    for grads in gradients(params, 8):
        step_both([ours, eager], grads)
    assert_same_on_both(ours, eager)
    assert ours.grad_norm == eager.grad_norm


def test_scaled_gradients_are_unscaled_first(backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), max_grad_norm=1.0, fused=True, backend=backend)
    plain = FusedRAdam(copies(params), max_grad_norm=1.0, backend="cpu")
    for grads in gradients(params, 8):
        scaled(ours, grads, 4096.0)
        step_both([plain], grads)
        assert_same_bits(ours.grad_norm, plain.grad_norm)
        assert_same_on_both(ours, plain)


def test_the_result_is_nearer_to_the_truth_than_that_of_torch(backend):
    """unscale_, clip_grad_norm_ and step round the gradient three times; the step does it once."""
    scale, limit, errors = 1000.0, 0.7, {"ours": 0.0, "theirs": 0.0}
    for seed in range(5):
        params = parameters((999,), (50, 7), seed=seed)
        ours = FusedRAdam(copies(params), max_grad_norm=limit, fused=True, backend=backend)
        theirs = torch.optim.RAdam(copies(params))
        truths = [Truth(p.detach().double().numpy()) for p in params]
        [grads] = gradients(params, 1, seed=seed)
        given = [g * scale for g in grads]
        scaled(ours, grads, scale)
        for p, g in zip(theirs.param_groups[0]["params"], given, strict=True):
            p.grad = g * (1 / torch.tensor(scale))
        clip_grad_norm_(theirs.param_groups[0]["params"], limit)
        theirs.step()
        exact = [g.double().numpy().astype(REAL) / scale for g in given]
        factor = REAL(limit) / (REAL(true_norm(exact_tensors(exact))) + REAL(1e-6))
        for i, (truth, g) in enumerate(zip(truths, exact, strict=True)):
            truth.step(g * factor)
            for name, optimizer in (("ours", ours), ("theirs", theirs)):
                p = optimizer.param_groups[0]["params"][i]
                m = optimizer.state[p]["exp_avg"].double().numpy().astype(REAL)
                errors[name] += float(((m - truth.m) ** 2).sum())
    assert errors["ours"] < errors["theirs"]


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("count", [3, 60])
def test_replays_take_the_norm(count, device_backend):
    params = parameters(*[(1 + 37 * i,) for i in range(count)])
    loop = Loop(device_backend, params, max_grad_norm=1.0, skip_above=1e3)
    steps = gradients(params, 10)
    loop.step(steps[0])
    graph = loop.capture()
    loop.optimizer.max_grad_norm = 5.0  # a replay keeps the limit of the capture
    for t, grads in enumerate(steps[1:]):
        if t == 4:
            grads[1][0] = 1e9
        loop.replay(graph, grads)
        loop.device_backend.synchronize()
        assert_same_bits(loop.optimizer.grad_norm.cpu(), loop.reference.grad_norm)
    loop.check()
    assert loop.optimizer.skipped_steps == loop.reference.skipped_steps == 1


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_the_first_norm_cannot_be_captured(device_backend):
    params = parameters((30,), (7,))
    loop = Loop(device_backend, params)
    loop.step(gradients(params, 1)[0])
    loop.optimizer.max_grad_norm = 1.0
    with pytest.raises(RuntimeError, match="Run one"):
        loop.capture()


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_replays_beside_steps(device_backend):
    params = parameters((30,), (700,))
    loop = Loop(device_backend, params, max_grad_norm=1.0)
    steps = gradients(params, 9)
    loop.step(steps[0])
    graph = loop.capture()
    for t, grads in enumerate(steps[1:]):
        (loop.step if t % 3 == 1 else lambda g: loop.replay(graph, g))(grads)
        loop.check()


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_replays_unscale_and_clip(device_backend):
    """A graph of a step by a gradient scaler reads its scale and its flag at each replay."""
    params = parameters((30,), (700,))
    loop = Loop(device_backend, params, fused=True, max_grad_norm=1.0)
    device = device_backend.device
    scale, overflow = torch.tensor(4.0, device=device), torch.zeros((), device=device)

    def give():
        loop.optimizer.grad_scale, loop.optimizer.found_inf = scale, overflow

    steps = gradients(params, 9)
    give()
    for p, g in zip(loop.params, steps[0], strict=True):
        p.grad.copy_(g * 4)
    loop.optimizer.step()
    step_both([loop.reference], steps[0])
    give()
    graph = loop.capture()
    for t, grads in enumerate(steps[1:]):
        scale.fill_(2.0 ** (t % 3))
        overflow.fill_(float(t == 4))
        for p, g in zip(loop.params, grads, strict=True):
            p.grad.copy_(g * scale.cpu())
        graph.replay()
        if t != 4:
            step_both([loop.reference], grads)
            assert_same_bits(loop.optimizer.grad_norm.cpu(), loop.reference.grad_norm)
        loop.check()


def test_launches_on_a_device(device_backend):
    """The norm of a steady step is a fixed number of kernels."""
    if not hasattr(device_backend, "launches"):
        pytest.skip("a GPU does not count its launches")
    params = on(device_backend.device, parameters(*[(40,)] * 50))
    optimizer = FusedRAdam(params, max_grad_norm=1.0, fused=True, backend=device_backend.name)
    counts = []
    for grads in gradients(params, 4):
        before = device_backend.launches()
        step_both([optimizer], grads)
        counts.append(device_backend.launches() - before)
    assert counts[-1] <= 8, counts  # with the upload of new addresses of gradients


def test_settings_are_checked():
    for make in (FusedRAdam, FusedAdam, FusedAdamW):
        for name in ("max_grad_norm", "skip_above"):
            for value in (-1.0, nan):
                with pytest.raises(ValueError, match=f"Invalid {name} value: {value}"):
                    make(parameters((2,)), **{name: value})
            for value in ("1", [1.0], torch.tensor(1.0), 1j):
                with pytest.raises(TypeError, match=f"Invalid {name} value"):
                    make(parameters((2,)), **{name: value})
        for name in ("skip_nonfinite", "error_if_nonfinite"):
            with pytest.raises(TypeError, match=f"Invalid {name} value"):
                make(parameters((2,)), **{name: "yes"})
    optimizer = FusedRAdam(parameters((2,)))
    with pytest.raises(ValueError, match="Invalid max_grad_norm value: -2"):
        optimizer.max_grad_norm = -2
    assert optimizer.max_grad_norm is None
    for name, value in (("skip_nonfinite", True), ("skip_above", 1.0)):
        with pytest.raises(AttributeError, match=f"{name} is fixed by the constructor"):
            setattr(optimizer, name, value)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_have_the_settings(copied):
    params = parameters((5,), (7,))
    optimizer = FusedRAdam(params, max_grad_norm=1.0, skip_above=9.0)
    other = copied(train(optimizer, gradients(params, 1)))
    assert (other.max_grad_norm, other.skip_above, other.skip_nonfinite) == (1.0, 9.0, False)
    assert other._options.counts_on_device(other.param_groups[0])
    train(other, gradients(params, 1, scale=100.0))
    assert other.skipped_steps == 1


def test_the_text_of_an_optimizer_has_the_settings():
    text = repr(FusedRAdam(parameters((2,)), max_grad_norm=2.5, skip_nonfinite=True))
    assert "\nmax_grad_norm: 2.5\nskip_nonfinite: True\n)" in text
    assert "max_grad_norm" not in repr(FusedRAdam(parameters((2,))))


def test_a_state_dict_has_none_of_it():
    params = parameters((5,), (7,))
    steps = gradients(params, 2)
    clipped = train(FusedRAdam(copies(params), max_grad_norm=1.0, skip_nonfinite=True), steps)
    plain = train(FusedRAdam(copies(params)), steps)
    one, other = clipped.state_dict(), plain.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert {k: set(v) for k, v in one["state"].items()} == {
        k: set(v) for k, v in other["state"].items()
    }
    loaded = FusedRAdam(copies(params), max_grad_norm=3.0)
    loaded.load_state_dict(one)
    assert loaded.max_grad_norm == 3.0


def test_the_clip_coefficient_of_torch():
    for norm in (0.0, 0.5, 1.0, 1.0000001, 7.0, inf):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        p.grad = torch.full((1,), norm, dtype=torch.float64)
        clip_grad_norm_([p], 1.0)
        ours = rectification.clip(norm * norm, 1.0, 1.0).coefficient * norm
        torch.testing.assert_close(p.grad.item(), ours, rtol=1e-15, atol=0, equal_nan=True)


class OneGroup(FusedRAdam):
    """Takes the norm of the first group only."""

    def step(self, closure=None):
        _, *others = self.param_groups
        held = [(p, p.grad) for group in others for p in group["params"]]
        for p, _ in held:
            p.grad = None
        super().step(closure)
        coefficient = rectification.clip(self.grad_norm.item() ** 2, 1.0, self.max_grad_norm)[1]
        for p in self.param_groups[0]["params"]:
            p.grad = None
        for p, grad in held:
            p.grad = grad * coefficient
        super().step(closure)


class Twice(FusedRAdam):
    """Clips the gradients, and then again."""

    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        coefficient = clip_grad_norm_(params, inf)
        for p in params:
            p.grad *= min(1.0, self.max_grad_norm / (coefficient.item() + 1e-6)) ** 2
        self.max_grad_norm, limit = None, self.max_grad_norm
        super().step(closure)
        self.max_grad_norm = limit


class BeforeUnscaling(FusedRAdam):
    """Compares the limit with the norm of the scaled gradients."""

    def step(self, closure=None):
        limit = self.max_grad_norm
        self.max_grad_norm = limit / self.grad_scale.item()
        super().step(closure)
        self.max_grad_norm = limit


@pytest.mark.parametrize("wrong", [OneGroup, Twice])
def test_wrong_clipping_is_noticed(wrong):
    params = parameters((30,), (7,), (40,), (3,))
    ours, theirs = (cls(two_groups(copies(params)), max_grad_norm=1.0) for cls in (wrong, ByTorch))
    for grads in gradients(params, 8):
        step_both([ours, theirs], [*grads[::2], *grads[1::2]])
    pairs = [
        pair
        for one, other in zip(ours.param_groups, theirs.param_groups, strict=True)
        for pair in zip(one["params"], other["params"], strict=True)
    ]
    assert not all(torch.allclose(p, q, rtol=1e-5, atol=1e-6) for p, q in pairs)


def test_clipping_before_unscaling_is_noticed():
    params = parameters((30,), (7,))
    ours = BeforeUnscaling(copies(params), max_grad_norm=1.0, fused=True)
    plain = FusedRAdam(copies(params), max_grad_norm=1.0)
    [grads] = gradients(params, 1)
    scaled(ours, grads, 4096.0)
    step_both([plain], grads)
    with pytest.raises(AssertionError):
        assert_same_run(ours, plain)


def test_a_group_has_no_settings_of_its_own():
    p, q = parameters((2,), (3,))
    with pytest.raises(ValueError, match=r"parameter group 0 has max_grad_norm=1\.0.*argument of"):
        FusedRAdam([{"params": [p], "max_grad_norm": 1.0}])
    optimizer = FusedRAdam([p], max_grad_norm=1.0)
    with pytest.raises(ValueError, match="parameter group 1 has skip_nonfinite=True"):
        optimizer.add_param_group({"params": [q], "skip_nonfinite": True})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q], "max_grad_norm": 1.0})  # as ZeRO-1 does


class OnAnotherDevice:
    """The event of a copy from a device that has ended, or not."""

    def __init__(self, is_done):
        self.query = lambda: is_done


def test_a_failure_of_another_process_is_reported_once_it_is_known():
    [p] = parameters((2,))
    optimizer = FusedRAdam([p], max_grad_norm=1.0)
    p.grad = torch.ones(2)
    for is_done in (False, True):
        optimizer._norms._failures = [(torch.tensor(1.0), OnAnotherDevice(is_done))]
        before = p.detach().clone()
        if is_done:
            with pytest.raises(RuntimeError, match="another process failed"):
                optimizer.step()
        else:
            optimizer.step()
        assert torch.equal(p, before) == is_done
