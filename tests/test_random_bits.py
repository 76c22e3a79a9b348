"""The random bits of stochastic rounding: uniform, independent, and repeatable."""

import math

import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.rounding import parameter_key, random_bits, round_stochastically, step_key

from .harness.helpers import assert_same_bits, assert_same_run, copies, gradients, parameters, train

COUNT = 200_000
PLACES = torch.arange(COUNT)


def halves(seed=0, parameter=0, step=1.0, places=PLACES):
    """The bits of exp_avg_sq and of the parameter."""
    random = random_bits(step_key(parameter_key(seed, parameter), step), places)
    assert ((random >= 0) & (random < 2**32)).all()
    return random & 0xFFFF, random >> 16


def deviations(observed, expected):
    """Pearson's statistic of counts, in standard deviations from its mean."""
    freedom = observed.numel() - 1
    chi = ((observed - expected) ** 2 / expected).sum().item()
    return (chi - freedom) / math.sqrt(2 * freedom)


def correlation(a, b):
    """The correlation of two streams, in its standard deviations."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return (a @ b / (a.norm() * b.norm())).item() * math.sqrt(a.numel())


@pytest.mark.parametrize("role", [0, 1], ids=["exp_avg_sq", "param"])
@pytest.mark.parametrize("shift", [0, 8], ids=["low", "high"])
def test_the_bits_of_elements_and_of_steps_are_uniform(role, shift):
    over_elements = halves()[role]
    over_steps = torch.stack([halves(step=float(s), places=PLACES[:64])[role] for s in range(2000)])
    over_parameters = torch.stack(
        [halves(parameter=p, places=PLACES[:64])[role] for p in range(2000)]
    )
    for bits in (over_elements, over_steps.flatten(), over_parameters.flatten()):
        counts = torch.bincount((bits >> shift) & 0xFF, minlength=256).double()
        assert abs(deviations(counts, bits.numel() / 256)) < 5


def test_pairs_of_neighbours_are_uniform():
    bits, _ = halves()
    for distance in (1, 2, 3, 8, 1024):
        pairs = (bits[:-distance] >> 12) * 16 + (bits[distance:] >> 12)
        counts = torch.bincount(pairs, minlength=256).double()
        assert abs(deviations(counts, pairs.numel() / 256)) < 5


def test_streams_are_not_correlated():
    streams = [*halves(), *halves(step=2.0), *halves(parameter=1), *halves(seed=1)]
    streams += [*halves(places=PLACES + 2**32), *halves(step=1e6), *halves(parameter=2**63)]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert abs(correlation(a, b)) < 5
            assert (a == b).double().mean() < 6 / 65536


def test_a_stream_without_its_step_is_noticed():
    assert correlation(halves(step=1.0)[0], halves(step=1.0)[0]) > 100


def test_rounding_is_unbiased():
    """Over many draws, the mean of a rounded number is the number."""
    values = torch.tensor([1.0, 1.001, 1.0039, -2.0001, 3e-39, 1.99999, 7e37, -1e-20])
    total = torch.zeros(values.numel(), dtype=torch.float64)
    low, high = values.clone(), values.clone()
    draws = 20_000
    for step in range(draws):
        random = halves(step=float(step), places=torch.arange(values.numel()))[0]
        rounded = round_stochastically(values, random).float()
        total += rounded.double()
        low, high = torch.minimum(low, rounded), torch.maximum(high, rounded)
    exact = values.double()
    spread = (high - low).double()
    error = (total / draws - exact).abs()
    assert (error <= 4 * 0.5 * spread / math.sqrt(draws)).all(), error / spread
    assert (spread[exact.float().bfloat16().float() != values] > 0).all()


@pytest.mark.parametrize("value", [1.5, -0.0, math.inf, -math.inf])
def test_a_bfloat16_number_is_not_changed(value):
    values = torch.full((1000,), value)
    assert_same_bits(round_stochastically(values, halves()[0][:1000]).float(), values)
    assert round_stochastically(values * torch.nan, halves()[0][:1000]).isnan().all()


def constant_gradients(backend, **options):
    """The values after 200 steps of a constant gradient from 1."""
    options.setdefault("lr", 2e-4)
    p = torch.nn.Parameter(torch.ones(4000, dtype=options.pop("dtype", torch.bfloat16)))
    optimizer = FusedRAdam([p], backend=backend, **options)
    for _ in range(200):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p.detach().double()


def test_small_updates_arrive(backend):
    exact = constant_gradients(backend, dtype=torch.float32)[0].item()
    assert exact < 0.992
    assert (constant_gradients(backend) == 1.0).all(), "bfloat16 alone must stall"
    rounded = constant_gradients(backend, stochastic_rounding=True)
    # A step moves by one unit (2^-8) at most: the mean of 4,000 sums is far nearer.
    assert abs(rounded.mean().item() - exact) < 4 * rounded.std().item() / math.sqrt(4000)
    assert rounded.std() > 0


def test_the_second_moment_is_unbiased(backend):
    """Rounded to nearest, it could not decay and would settle too high."""
    [p] = parameters((2000,))
    states = {}
    for moments in (None, "bfloat16"):
        [q] = copies([p])
        optimizer = FusedRAdam([q], backend=backend, moments=moments, betas=(0.9, 0.99))
        q.grad = torch.full_like(q, 10.0)
        optimizer.step()
        q.grad = torch.full_like(q, 0.1)
        for _ in range(150):
            optimizer.step()
        states[moments] = optimizer.state[q]["exp_avg_sq"].double()
    ratio = (states["bfloat16"] / states[None]).mean().item()
    assert abs(ratio - 1) < 0.003


def run(seed=0, names=None, **options):
    params = parameters((300,), (40,), dtype=torch.bfloat16)
    named = params if names is None else list(zip(names, params, strict=True))
    options = {"moments": "bfloat16", "stochastic_rounding": True, "backend": "cpu", **options}
    return train(FusedRAdam(named, seed=seed, **options), gradients(params, 10))


def are_same_runs(one, other):
    try:
        assert_same_run(one, other)
    except AssertionError:
        return False
    return True


def test_a_run_repeats_and_another_seed_changes_it():
    assert are_same_runs(run(), run())
    torch.manual_seed(5)
    assert are_same_runs(run(), run())
    assert not are_same_runs(run(), run(seed=1))
    assert not are_same_runs(run(), run(seed=2**53 - 1))


def test_torchs_generator_is_neither_used_nor_changed():
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_name_decides_not_the_place():
    names = ["a", "b"]
    assert not are_same_runs(run(names=names), run())
    assert not are_same_runs(run(names=names), run(names=["a", "c"]))
    params = parameters((300,), (40,), dtype=torch.bfloat16)
    steps = gradients(params, 10)
    options = {"moments": "bfloat16", "stochastic_rounding": True, "backend": "cpu"}
    turned = FusedRAdam(list(zip("ba", params[::-1], strict=True)), **options)
    train(turned, [grads[::-1] for grads in steps])
    straight = run(names=names)
    for p, q in zip(params, straight.param_groups[0]["params"], strict=True):
        assert_same_bits(p.detach(), q.detach())


def test_the_seed_is_saved_where_it_is_set():
    assert "seed" not in run().state_dict()["param_groups"][0]
    saved = run(seed=7).state_dict()
    assert saved["param_groups"][0]["seed"] == 7
    loaded = run()
    with pytest.warns(UserWarning, match="seed=0"):
        loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["seed"] == 7


def test_the_seed_can_change_between_steps(backend):
    params = parameters((600,), dtype=torch.bfloat16)
    [q], steps = copies(params), gradients(params, 4)
    options = {"moments": "bfloat16", "backend": backend}
    train(FusedRAdam(params, seed=3, **options), steps)
    changed = train(FusedRAdam([q], **options), steps[:0])
    changed.param_groups[0]["seed"] = 3
    train(changed, steps)
    assert_same_bits(params[0].detach(), q.detach())


def test_elements_are_numbered_in_memory_order(backend):
    """A transposed parameter draws the bits of the memory that it is a view of."""
    [p] = parameters((30, 40), dtype=torch.bfloat16)
    grads = gradients([p], 6)
    options = {"moments": "bfloat16", "stochastic_rounding": True, "backend": backend}
    q = torch.nn.Parameter(p.detach().clone().t())
    train(FusedRAdam([p], **options), grads)
    train(FusedRAdam([q], **options), [[g.t() for g in step] for step in grads])
    assert_same_bits(p.detach(), q.detach().t())
