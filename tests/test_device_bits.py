"""The device backends give the bits of the CPU kernel and access no other memory."""

import random

import pytest
import torch

from radam_fused import FusedRAdam, radam_step_

from .harness.helpers import OPTIONS, assert_same_bits, copies, gradients, parameters
from .test_bits import DTYPES, SHAPES, rounding_cases

FLOATS = {name: dtype for name, dtype in DTYPES.items() if not dtype.is_complex}

# Around a word, a chunk and several chunks.
SIZES = [*SHAPES[:-1], (1023,), (1024,), (1025,), (3, 2049)]


def on(device, params):
    return [torch.nn.Parameter(p.detach().to(device).clone()) for p in params]


def step_both(optimizers, grads):
    for optimizer in optimizers:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.to(p.device, copy=True)
        optimizer.step()


def assert_same_on_both(one, other):
    """Like assert_same_run, for tensors on different devices."""
    for group, other_group in zip(one.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], other_group["params"], strict=True):
            assert_same_bits(p.detach().cpu(), q.detach().cpu(), "parameter")
            assert set(one.state[p]) == set(other.state[q])
            for key, value in one.state[p].items():
                assert_same_bits(value.cpu(), other.state[q][key].cpu(), key)


def pair(device_backend, params, **options):
    """Optimizers with the same parameters: one on a device backend, one on the CPU kernel."""
    ours = FusedRAdam(on(device_backend.device, params), backend=device_backend.name, **options)
    return ours, FusedRAdam(copies(params), backend="cpu", **options)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_and_dtype(options, dtype, device_backend):
    params = parameters(*SIZES, dtype=dtype)
    optimizers = pair(device_backend, params, **options)
    for grads in gradients(params, 8):
        step_both(optimizers, grads)
        assert_same_on_both(*optimizers)


@pytest.mark.parametrize("param", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("grad", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("in_param_dtype", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
def test_every_combination_of_dtypes(param, grad, in_param_dtype, amsgrad, device_backend):
    params = parameters((1500,), (7, 3), dtype=param)
    optimizers = pair(
        device_backend,
        params,
        moments="param" if in_param_dtype else None,
        amsgrad=amsgrad,
        weight_decay=0.1,
    )
    for optimizer in optimizers:
        for p in optimizer.param_groups[0]["params"]:
            p.grad_dtype = None
    for grads in gradients(params, 8):
        step_both(optimizers, [g.to(grad) for g in grads])
    assert_same_on_both(*optimizers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_every_16_bit_number_is_converted_as_in_torch(dtype, device_backend):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    p = torch.nn.Parameter(every.to(device_backend.device, copy=True))
    p.grad = torch.zeros_like(p)
    FusedRAdam([p], backend=device_backend.name, lr=0.0).step()
    assert_same_bits(p.detach().cpu(), every)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_rounding_to_16_bits_agrees_with_torch(dtype, device_backend):
    """A moment in the parameter's dtype is one rounding of the gradient at beta1 = 0."""
    grads = rounding_cases(dtype, 40_000)
    p = torch.nn.Parameter(torch.zeros(grads.numel(), dtype=dtype, device=device_backend.device))
    p.grad_dtype = None
    p.grad = grads.to(device_backend.device)
    options = {"betas": (0.0, 0.9), "moments": "param"}
    optimizer = FusedRAdam([p], backend=device_backend.name, **options)
    optimizer.step()
    assert_same_bits(optimizer.state[p]["exp_avg"].cpu(), grads.to(dtype))


@pytest.mark.parametrize("exponent", [-140, -126, -70, 0, 60, 120])
def test_extreme_magnitudes(exponent, device_backend):
    params = parameters((1100,))
    optimizers = pair(device_backend, params, eps=1e-30)
    for grads in gradients(params, 10):
        step_both(optimizers, [g * 2.0**exponent for g in grads])
    assert_same_on_both(*optimizers)


class Guarded:
    """Tensors as slices of larger ones, whose other elements must be neither read nor written."""

    def __init__(self, draw, device):
        self._draw = draw
        # A NaN that is read shows in a result; a number shows that a NaN was written.
        self._poison = draw.choice([77.0, float("nan")])
        self._device = device
        self.storages = []

    def tensor(self, values, misaligned):
        before = self._draw.choice([1, 3, 5, 8]) if misaligned else 64
        storage = torch.full((before + values.numel() + 9,), self._poison, dtype=values.dtype)
        inside = slice(before, before + values.numel())
        storage[inside] = values
        storage = storage.to(self._device)
        self.storages.append((storage, inside))
        return storage[inside]

    def assert_untouched(self):
        for storage, inside in self.storages:
            outside = torch.cat([storage[: inside.start], storage[inside.stop :]])
            assert_same_bits(outside, torch.full_like(outside, self._poison))


def drawn_table(seed, device):
    """Tensors of drawn sizes, dtypes and alignments, twice: with guards and without."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    param = draw.choice(list(FLOATS.values()))
    grad = draw.choice([param, *FLOATS.values()])
    arithmetic = torch.float64 if param == torch.float64 else torch.float32
    moment = draw.choice([arithmetic, param])
    count = draw.choice([1, 2, 3, 7, 20, 38, 39, 40, 130])
    edges = [0, 1, 3, 4, 5, 7, 8, 9, 127, 128, 1023, 1024, 1025, 2047, 2048, 3000, 5000]
    sizes = [draw.choice(edges[: 12 if count > 20 else None]) for _ in range(count)]
    misaligned = draw.choice([0.0, 0.0, 0.2, 1.0])
    amsgrad = draw.random() < 0.4
    dtypes = [param, grad, moment, moment] + [moment] * amsgrad
    guarded = Guarded(draw, device)
    ours, theirs = [[] for _ in dtypes], [[] for _ in dtypes]
    for size in sizes:
        values = [torch.randn(size, dtype=torch.float64).to(dtype) for dtype in dtypes]
        for i in range(3, len(dtypes)):
            values[i].abs_()
        for i, value in enumerate(values):
            ours[i].append(guarded.tensor(value, draw.random() < misaligned))
            theirs[i].append(value.clone())
    lag = draw.choice([1, 1, 2, 7])
    start = draw.choice([0, 3, 20])
    steps = [torch.tensor(float(start + i % lag)) for i in range(count)]
    options = {
        "lr": draw.choice([1e-3, 0.1]),
        "weight_decay": draw.choice([0, 0.1]),
        "decoupled_weight_decay": draw.random() < 0.5,
        "maximize": draw.random() < 0.3,
        "betas": draw.choice([(0.9, 0.999), (0.0, 0.7), (0.5, 0.9)]),
        "degenerated_to_sgd": draw.random() < 0.7,
    }
    return ours, theirs, steps, options, guarded


def assert_same_tables(seed, device_backend):
    ours, theirs, steps, options, guarded = drawn_table(seed, device_backend.device)

    def run(lists, backend):
        maxima = lists[4] if len(lists) > 4 else None
        counts = [step.clone() for step in steps]
        radam_step_(*lists[:4], counts, maxima, backend=backend, **options)

    run(ours, device_backend.name)
    run(theirs, "cpu")
    for role, (mine, expected) in enumerate(zip(ours, theirs, strict=True)):
        for i, (a, b) in enumerate(zip(mine, expected, strict=True)):
            assert_same_bits(a.cpu(), b, f"table {seed}, role {role}, tensor {i}")
    guarded.assert_untouched()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 400, 20))
def test_drawn_tables_between_guards(first, device_backend):
    for seed in range(first, first + 20, 5 if device_backend.is_slow else 1):
        assert_same_tables(seed, device_backend)


@pytest.mark.parametrize("fault", ["one_thread_less", "last_block_left_out", "a_thread_twice"])
def test_a_faulty_grid_is_noticed(fault, grid):
    grid.module.set_fault(getattr(grid.module.Fault, fault))
    try:
        noticed = 0
        for seed in range(40):
            try:
                assert_same_tables(seed, grid)
            except AssertionError:
                noticed += 1
    finally:
        grid.module.set_fault(grid.module.Fault.none)
    assert noticed > 20


def test_a_write_into_a_guard_is_noticed():
    *_, guarded = drawn_table(1, torch.device("cpu"))
    storage, inside = guarded.storages[0]
    storage[inside.stop] = 0
    with pytest.raises(AssertionError):
        guarded.assert_untouched()


@pytest.mark.parametrize("count", [1, 2, 16, 17, 38, 39, 40, 55, 56, 57, 511, 512, 1500])
def test_tables_in_kernel_arguments_and_in_device_memory(count, device_backend):
    params = parameters(*[(1 + i % 40,) for i in range(count)])
    optimizers = pair(device_backend, params)
    for grads in gradients(params, 7):
        step_both(optimizers, grads)
    assert_same_on_both(*optimizers)


@pytest.mark.slow
def test_more_segments_than_16_bits_can_number(grid):
    def tables():
        return [[torch.full((1,), float(i % 99 + k)) for i in range(70_000)] for k in range(4)]

    ours, theirs = tables(), tables()
    for lists, backend in ((ours, grid.name), (theirs, "cpu")):
        steps = [torch.tensor(float(i % 3)) for i in range(70_000)]
        radam_step_(*lists, steps, backend=backend, lr=0.1)
    for mine, expected in zip(ours, theirs, strict=True):
        assert_same_bits(torch.cat(mine), torch.cat(expected))


def test_more_coefficients_than_fit_into_kernel_arguments(device_backend):
    params = parameters(*[(30 + i,) for i in range(12)])
    optimizers = pair(device_backend, params)
    for t, grads in enumerate(gradients(params, 14)):
        step_both(optimizers, [g if i <= t else None for i, g in enumerate(grads)])
        assert_same_on_both(*optimizers)


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_one_launch_per_kind_and_one_upload_per_change(capturable, host_backend):
    params = parameters(*[(4, 2)] * 1000)
    optimizer = FusedRAdam(params, backend=host_backend.name)
    optimizer.param_groups[0]["capturable"] = capturable
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()

    def launches():
        before = host_backend.launches()
        optimizer.step()
        return host_backend.launches() - before

    # The step kernel, and a prologue or a copy for the coefficients, or neither.
    usual = 1 if host_backend.name == "cuda" and not capturable else 2
    # A segment has 96 bytes; one upload copies 32,744.
    uploaded = usual + 3 if host_backend.name == "cuda" else 2 + capturable
    assert launches() == usual
    params[3].grad = torch.ones_like(params[3])  # at another address
    assert launches() == uploaded
    assert launches() == usual
    params[3].grad = None
    assert launches() == uploaded
    assert launches() == usual


def test_views_with_gaps_and_gradients_in_another_order(device_backend):
    bases = [b.detach() for b in parameters((40, 30), (20, 50))]
    runs = []
    for device, backend in (
        (device_backend.device, device_backend.name),
        (torch.device("cpu"), "cpu"),
    ):
        there = [base.to(device).clone() for base in bases]
        params = [torch.nn.Parameter(there[0][:, 3:20]), torch.nn.Parameter(there[1])]
        optimizer = FusedRAdam(params, backend=backend)
        for grads in gradients([bases[0][:, 3:20], bases[1]], 7):
            params[0].grad = grads[0].to(device)
            params[1].grad = grads[1].t().contiguous().t().to(device)
            optimizer.step()
        runs.append((there, optimizer))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        assert_same_bits(a.cpu(), b)
    assert_same_on_both(runs[0][1], runs[1][1])


def test_a_step_increments_the_version_that_autograd_checks(device_backend):
    [p] = on(device_backend.device, parameters((4,)))
    optimizer = FusedRAdam([p], backend=device_backend.name)
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    version = p.grad._version
    optimizer.step()
    assert p.grad._version == version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_checkpoints_move_between_backends(device_backend):
    params = parameters((33, 5), (1025,))
    steps = gradients(params, 12)
    ours, theirs = pair(device_backend, params)
    straight = FusedRAdam(copies(params), backend="cpu")
    for grads in steps[:4]:
        step_both([ours, straight], grads)
    for p, q in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        p.data.copy_(q.data)
    theirs.load_state_dict(ours.state_dict())
    for grads in steps[4:]:
        step_both([theirs, straight], grads)
    assert_same_on_both(theirs, straight)
