"""max_grad_norm: the norm of all gradients, taken and clipped inside the step."""

import copy
import pickle
from math import inf, nan, sqrt

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from radam_fused import PRESETS, FusedAdam, FusedAdamW, FusedRAdam, rectification
from radam_fused.backends.cpu import CpuLaunch
from radam_fused.sums import fold, fold_in_torch

from .harness.helpers import (
    OPTIONS,
    TORCH_OPTIONS,
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    train,
)
from .harness.truth import REAL, Truth
from .test_bits import DTYPES
from .test_device_bits import assert_same_on_both, on, step_both
from .test_graphs import Loop

# Around a chunk of a sum.
SIZES = [(5, 3), (0,), (1023,), (1024,), (1025,), (3, 2049), ()]

FINE = 1e-13  # relative error of a float64 norm


def true_norm(grads):
    """The norm by extended precision."""
    return float(
        sqrt(sum(float((g.detach().double().numpy().astype(REAL) ** 2).sum()) for g in grads))
    )


def two_groups(params):
    """Groups with other options, the parameters of which alternate."""
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.01}]


class ByTorch:
    """clip_grad_norm_ before the step of torch.optim.RAdam."""

    def __init__(self, params, max_grad_norm, **options):
        self.optimizer = torch.optim.RAdam(params, **options)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self._max_norm = max_grad_norm

    def step(self):
        params = [p for group in self.param_groups for p in group["params"]]
        self.grad_norm = clip_grad_norm_(params, self._max_norm)
        self.optimizer.step()


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


@pytest.mark.parametrize("name", TORCH_OPTIONS)
def test_follows_the_sequence_of_torch(name, backend):
    params = parameters(*SIZES)
    options = {"max_grad_norm": 1.0, **TORCH_OPTIONS[name]}
    ours = FusedRAdam(copies(params), backend=backend, **options)
    theirs = ByTorch(copies(params), **options)
    for grads in gradients(params, 8):
        step_both([ours, theirs], grads)
        torch.testing.assert_close(ours.grad_norm, theirs.grad_norm.double(), rtol=1e-6, atol=0)
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


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


# Skipping.


@pytest.mark.parametrize("options", [{"skip_nonfinite": True}, {"skip_above": 10.0}], ids=str)
@pytest.mark.parametrize("more", [{}, {"max_grad_norm": 1.0}, {"fused": True}], ids=str)
def test_a_skipped_step_changes_nothing(options, more, backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), weight_decay=0.1, backend=backend, **options, **more)
    eager = FusedRAdam(copies(params), weight_decay=0.1, backend="eager", **more)
    for t, grads in enumerate(gradients(params, 12)):
        if t % 3 == 1:
            worst = [nan, inf] if "skip_nonfinite" in options else [nan, inf, 100.0]
            grads[t % 2][0] = worst[t % len(worst)]
            step_both([ours], grads)
        else:
            step_both([ours, eager], grads)
        assert_same_on_both(ours, eager)
    assert ours.skipped_steps.item() == 4
    assert (ours.skipped_steps.dtype, ours.skipped_steps.shape) == (torch.int64, ())


def test_steps_are_counted_where_the_parameters_are():
    for options in ({"skip_nonfinite": True}, {"skip_above": 1.0}):
        p = torch.nn.Parameter(torch.zeros(3, device="meta"))
        optimizer = FusedRAdam([p], **options)
        assert optimizer._options.counts_on_device(optimizer.param_groups[0])
        assert set(optimizer.param_groups[0]) == set(FusedRAdam([p]).param_groups[0])
    assert not FusedRAdam._options.counts_on_device(optimizer.param_groups[0])


def test_a_norm_at_the_limit_is_no_reason_to_skip(backend):
    [p] = parameters((2,))
    optimizer = FusedRAdam([p], skip_above=5.0, backend=backend)
    for grad in ([3.0, 4.0], [3.0, 4.0000005]):
        p.grad = torch.tensor(grad)
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("value", [inf, nan])
def test_an_error_instead(value, backend):
    params = parameters((30,), (7,))
    optimizer = FusedRAdam(params, max_grad_norm=1.0, error_if_nonfinite=True, backend=backend)
    first, second, third = gradients(params, 3)
    step_both([optimizer], first)
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    second[1][3] = value
    with pytest.raises(RuntimeError, match=r"norm of order 2\.0 for gradients.*is non-finite"):
        step_both([optimizer], second)
    after = optimizer.state_dict()
    for index, state in before[0]["state"].items():
        for key in state:
            assert_same_bits(state[key], after["state"][index][key])
    for p, old in zip(params, before[1], strict=True):
        assert_same_bits(p.detach(), old)
    step_both([optimizer], third)
    assert optimizer.state[params[0]]["step"] == 2


# With a gradient scaler.


def scaled(optimizer, grads, scale, found_inf=0.0):
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.grad_scale = torch.tensor(scale, device=device)
    optimizer.found_inf = torch.tensor(found_inf, device=device)
    step_both([optimizer], [g * scale for g in grads])


def test_scaled_gradients_are_unscaled_first(backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), max_grad_norm=1.0, fused=True, backend=backend)
    plain = FusedRAdam(copies(params), max_grad_norm=1.0, backend="cpu")
    for grads in gradients(params, 8):
        scaled(ours, grads, 4096.0)
        step_both([plain], grads)
        assert_same_bits(ours.grad_norm, plain.grad_norm)
        assert_same_on_both(ours, plain)


def test_an_overflow_is_skipped_once(backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), skip_nonfinite=True, fused=True, backend=backend)
    plain = FusedRAdam(copies(params), backend="cpu")
    for t, grads in enumerate(gradients(params, 8)):
        if t % 4 == 1:
            scaled(ours, [torch.full_like(g, inf) for g in grads], 4096.0, found_inf=1.0)
        else:
            scaled(ours, grads, 4096.0)
            step_both([plain], grads)
        assert_same_on_both(ours, plain)
    assert ours.skipped_steps == 2


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


def exact_tensors(arrays):
    return [torch.from_numpy(a.astype("float64")) for a in arrays]


# In a graph.


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


# The settings.


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


# Negative controls: wrong clipping that the comparisons above must catch.


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
