"""Masters hold the exact float32 values of 16-bit parameters."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.rounding import join, split

from .harness.helpers import assert_same_bits, assert_same_run, copies, gradients, parameters, train

STEPS = 300
LARGEST = float(np.finfo(np.float32).max)


def patterns():
    """Float32 numbers of every kind: all exponents, ties of bfloat16 and their neighbours."""
    generator = np.random.default_rng(0)
    high = np.arange(2**16, dtype=np.uint32) << 16  # every bfloat16 number
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    near = (high[:, None] | low).reshape(-1)
    drawn = generator.integers(0, 2**32, 2_000_000, dtype=np.uint64).astype(np.uint32)
    return torch.from_numpy(np.concatenate([near, drawn]).view(np.float32))


def through_a_step(values, backend):
    """Masters after a step that changes nothing, from masters with these values."""
    p = torch.nn.Parameter(torch.zeros(values.numel(), dtype=torch.bfloat16))
    optimizer = FusedRAdam([p], lr=0.0, master_weights="split", backend=backend)
    optimizer.reset_masters([values])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    [found] = optimizer.master_params()
    return found, p.detach()


def assert_lossless(found, values):
    assert_same_bits(found, values)
    assert_same_bits(
        found[values.isnan()].view(torch.int32),
        torch.full_like(values[values.isnan()], torch.nan).view(torch.int32),
    )


def test_no_float32_number_loses_a_bit():
    values = patterns()
    assert_lossless(join(*split(values)), values)


def test_no_float32_number_loses_a_bit_in_a_step(instruction_set):
    values = patterns()
    found, params = through_a_step(values, "cpu")
    assert_lossless(found, values)
    high, _ = split(values)
    assert_same_bits(params, high)


def test_a_split_parameter_is_the_nearest_bfloat16_number():
    values = patterns()
    high, _ = split(values)
    ties = (values.view(torch.int32) & 0xFFFF) == 0x8000
    assert_same_bits(high[~ties], values[~ties].bfloat16())
    finite = ties & values.isfinite() & high.isfinite()
    assert (high[finite].float().abs() > values[finite].abs()).all()


def test_a_remainder_of_15_bits_is_noticed():
    """The fault of another implementation: a bit is lost in about one of a million numbers."""
    values = patterns()
    high, low = split(values)
    with pytest.raises(AssertionError):
        assert_lossless(join(high, low & ~1), values)


def odd_gradients(param, steps):
    """Gradients of every magnitude, with infinities and NaN."""
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        grad = torch.randn(param.shape, generator=generator)
        grad *= 2.0 ** torch.randint(-130, 60, param.shape, generator=generator)
        grad[step % 7 :: 97] = 0.0
        if step == steps - 20:
            grad[5], grad[6], grad[7] = torch.inf, -torch.inf, torch.nan
        yield grad.bfloat16()


@pytest.mark.parametrize("format", ["split", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"amsgrad": True, "lr": 0.5}],
    ids=["defaults", "decoupled", "amsgrad"],
)
@pytest.mark.parametrize("name", ["cpu", "eager"])
def test_the_trajectory_is_that_of_float32(name, options, format):
    [p] = parameters((2000,), dtype=torch.bfloat16)
    with torch.no_grad():
        p *= 2.0 ** torch.randint(-120, 60, p.shape)
    wide = torch.nn.Parameter(p.detach().float())
    ours = FusedRAdam([p], backend=name, master_weights=format, **options)
    plain = FusedRAdam([wide], backend=name, **options)
    for step, grad in enumerate(odd_gradients(p, STEPS)):
        train(ours, [[grad]])
        train(plain, [[grad.float()]])
        if step % 50 == 49 or step < 10:
            [master] = ours.master_params()
            assert_same_bits(master, wide.detach(), f"step {step}")
    assert_same_bits(ours.state[p]["exp_avg_sq"], plain.state[wide]["exp_avg_sq"])
    assert wide.isnan().any()
    assert not torch.equal(p.float()[wide.isfinite()], wide[wide.isfinite()])
    if format == "float32":
        assert_same_bits(p.detach(), wide.detach().bfloat16())


def test_float16_keeps_a_float32_copy(backend):
    [p] = parameters((700,), dtype=torch.float16)
    wide = torch.nn.Parameter(p.detach().float())
    ours = FusedRAdam([p], backend=backend, master_weights="float32", lr=1e-4)
    plain = FusedRAdam([wide], backend=backend, lr=1e-4)
    for grads in gradients([p], 40):
        train(ours, [grads])
        train(plain, [[g.float() for g in grads]])
    [master] = ours.master_params()
    assert_same_bits(master, wide.detach())
    assert_same_bits(p.detach(), wide.detach().half())


def test_float32_parameters_are_their_own_masters(backend):
    params = parameters((5,))
    ours = train(FusedRAdam(params, backend=backend, master_weights="split"), gradients(params, 3))
    [p] = params
    assert "param_remainder" not in ours.state[p]
    [master] = ours.master_params()
    assert master.data_ptr() == p.data_ptr()
    assert not master.requires_grad


def after_steps(format, backend, dtype=torch.bfloat16):
    [p] = parameters((40,), dtype=dtype)
    optimizer = FusedRAdam([p], backend=backend, master_weights=format, lr=1e-4)
    return p, train(optimizer, gradients([p], 8))


def step_of_zero(optimizer, p):
    p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    [master] = optimizer.master_params()
    return master


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_written_value_replaces_a_float32_copy(dtype, backend):
    p, optimizer = after_steps("float32", backend, dtype)
    [before] = optimizer.master_params()
    with torch.no_grad():
        p[:4] = torch.tensor([2.0, -3.0, 0.0, torch.inf], dtype=dtype)
    after = step_of_zero(optimizer, p)
    assert after[:4].tolist() == [2.0, -3.0, 0.0, torch.inf]
    assert_same_bits(after[4:], before[4:])
    assert_same_bits(optimizer.state[p]["master_param"], after)


def test_a_written_value_keeps_the_low_bits_of_a_split_master(backend):
    p, optimizer = after_steps("split", backend)
    low = optimizer.state[p]["param_remainder"].clone()
    assert (low < 0).any()
    with torch.no_grad():
        p.fill_(2.0)
    after = step_of_zero(optimizer, p)
    assert_same_bits(optimizer.state[p]["param_remainder"], low)
    assert (after.view(torch.int32) == 0x40000000 + low.int()).all()
    optimizer.reset_masters()
    [reset] = optimizer.master_params()
    assert reset.tolist() == [2.0] * 40


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_that_the_user_writes_is_no_nan(zero, backend):
    p, optimizer = after_steps("split", backend)
    with torch.no_grad():
        p.fill_(zero)
    after = step_of_zero(optimizer, p)
    assert (after.abs() < 1e-40).all()
    assert (optimizer.state[p]["param_remainder"] >= 0).all()


def test_masters_are_set_before_the_first_step_and_later(backend):
    """A float32 run continues in bfloat16, with the bits that it would have had."""
    wide = parameters((30, 5), (7,))
    steps = [[g.bfloat16().float() for g in grads] for grads in gradients(wide, 12)]
    run = train(FusedRAdam(wide, backend=backend), steps[:6])
    narrow = [torch.nn.Parameter(p.detach().bfloat16()) for p in wide]
    resumed = FusedRAdam(narrow, backend=backend, master_weights="split")
    with pytest.warns(UserWarning, match="master_weights='split'"):
        resumed.load_state_dict(deepcopy(run.state_dict()))
    resumed.reset_masters(run.master_params())
    train(run, steps[6:])
    train(resumed, [[g.bfloat16() for g in grads] for grads in steps[6:]])
    for master, p in zip(resumed.master_params(), wide, strict=True):
        assert_same_bits(master, p.detach())


def test_values_of_another_number_or_shape_are_refused():
    p, optimizer = after_steps("split", "cpu")
    before = p.detach().clone()
    with pytest.raises(ValueError, match="values has 2 tensors, expected 1"):
        optimizer.reset_masters([torch.zeros(40)] * 2)
    with pytest.raises(ValueError, match=r"value 0 has shape \(3,\), expected \(40,\)"):
        optimizer.reset_masters([torch.zeros(3)])
    assert_same_bits(p.detach(), before)


@pytest.mark.parametrize(("first", "second"), [("split", "float32"), ("float32", "split")])
def test_one_format_of_masters_follows_another(first, second, backend):
    [p] = parameters((300,), dtype=torch.bfloat16)
    [q], steps = copies([p]), gradients([p], 12)
    straight = train(FusedRAdam([q], backend=backend, master_weights=first), steps)
    changed = train(FusedRAdam([p], backend=backend, master_weights=first), steps[:6])
    changed.param_groups[0]["master_weights"] = second
    train(changed, steps[6:])
    assert set(changed.state[p]) & {"param_remainder", "master_param"} == {
        "param_remainder" if second == "split" else "master_param"
    }
    for one, other in zip(straight.master_params(), changed.master_params(), strict=True):
        assert_same_bits(one, other)


def test_flat_buffers_hold_masters(backend):
    params = parameters((40, 5), (7,), dtype=torch.bfloat16)
    steps = gradients(params, 9)
    options = {"backend": backend, "master_weights": "split"}
    plain = train(FusedRAdam(copies(params), **options), steps)
    flat = FusedRAdam(params, flatten=True, **options)
    assert_same_run(train(flat, steps), plain)


def test_a_failed_step_restores_masters_and_parameters(backend):
    """Half-way between two bfloat16 numbers, the two formats have different parameters."""
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    options = {"max_grad_norm": 1.0, "error_if_nonfinite": True, "backend": backend}
    optimizer = FusedRAdam([p], master_weights="split", **options)
    optimizer.reset_masters([torch.full((4,), 1.00390625)])
    before, state = p.detach().clone(), dict(optimizer.state[p])
    optimizer.param_groups[0]["master_weights"] = "float32"
    p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(RuntimeError, match="non-finite"):
        optimizer.step()
    assert_same_bits(p.detach(), before)
    assert optimizer.state[p].keys() == state.keys()
    assert all(optimizer.state[p][key] is value for key, value in state.items())
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.state[p]["master_param"].tolist() == [1.00390625] * 4


def test_masters_that_the_options_do_not_ask_for_are_dropped(backend):
    p, optimizer = after_steps("split", backend)
    optimizer.param_groups[0]["master_weights"] = None
    [value] = optimizer.master_params()
    assert_same_bits(value, p.detach().float())
    train(optimizer, gradients([p], 1))
    assert "param_remainder" not in optimizer.state[p]
    optimizer.param_groups[0]["master_weights"] = "split"
    before = p.detach().float()
    assert_same_bits(step_of_zero(optimizer, p), before)


def test_a_parameter_that_has_become_float32_is_its_own_master():
    p, optimizer = after_steps("split", "cpu")
    p.data = p.detach().float()
    [value] = optimizer.master_params()
    assert value.data_ptr() == p.data_ptr()
    p.grad = None
    train(optimizer, gradients([p], 1))
    assert "param_remainder" not in optimizer.state[p]


def test_frozen_and_lazy_parameters_get_no_masters():
    [p, frozen] = parameters((3,), (4,), dtype=torch.bfloat16)
    frozen.requires_grad_(False)
    lazy = torch.nn.LazyLinear(3, dtype=torch.bfloat16)
    number = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    params = [p, frozen, number, *lazy.parameters()]
    for options in ({"master_weights": "split"}, {"moments": "bfloat16"}):
        optimizer = FusedRAdam(params, **options)
        optimizer.reset_masters()
        assert set(optimizer.state) == ({p} if "master_weights" in options else set())
        assert len(list(optimizer.master_params())) == len(params)


def test_resetting_masters_rounds_no_moments():
    p, optimizer = after_steps("split", "cpu")
    optimizer.param_groups[0]["moments"] = "bfloat16"
    before = {key: value.clone() for key, value in optimizer.state[p].items()}
    with pytest.raises(ValueError, match="a conversion would round"):
        optimizer.reset_masters()
    for key, value in before.items():
        assert_same_bits(optimizer.state[p][key], value, key)


def test_a_fraction_of_a_step_count_draws_the_same_bits(backend):
    """An average of states has one; each backend adds 1 in the dtype of the counter."""
    options = {"moments": "bfloat16", "stochastic_rounding": True}
    params = parameters((50,), dtype=torch.bfloat16)
    [q] = copies(params)
    runs = [
        FusedRAdam(params, backend=backend, **options),
        FusedRAdam([q], backend="cpu", **options),
    ]
    [grads] = gradients(params, 1)
    for count in (1 / 3, 5 / 3, 2.0**24):
        for run in runs:
            train(run, [grads])
            [own] = run.param_groups[0]["params"]
            run.state[own]["step"].fill_(count)
        for run in runs:
            train(run, [grads])
        assert_same_run(*runs)
