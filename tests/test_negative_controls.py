"""Wrong optimizers that the assertions of this suite must catch."""

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import (
    assert_same_run,
    assert_true,
    copies,
    fused,
    gradients,
    parameters,
    train,
)


class NoOp(FusedRAdam):
    """Counts its steps and does nothing else."""

    def step(self, closure=None):
        before = [p.detach().clone() for p in self.param_groups[0]["params"]]
        super().step(closure)
        with torch.no_grad():
            for p, old in zip(self.param_groups[0]["params"], before, strict=True):
                p.copy_(old)


def no_op(params, **options):
    return NoOp(params, **options)


def wrong_sign(params, **options):
    return FusedRAdam(params, **{**options, "maximize": not options.get("maximize", False)})


def wrong_threshold(params, **options):
    return FusedRAdam(params, **{**options, "rectify_threshold": 6.0})


def misplaced_eps(params, **options):
    return FusedRAdam(params, **{**options, "eps_after_bias_correction": True})


def never_rectified(params, **options):
    return FusedRAdam(params, **{**options, "rectify_threshold": 1e9})


def otherwise_rectified(params, **options):
    return FusedRAdam(params, **{**options, "exact_rectification": True})


def always_rectified(params, **options):
    return FusedRAdam(params, **{**options, "rectify": False})


def wrong_decay(params, **options):
    return FusedRAdam(params, **{**options, "decoupled_weight_decay": True})


def swapped_betas(params, **options):
    return FusedRAdam(params, **{**options, "betas": (0.999, 0.9)})


class StaleStep(FusedRAdam):
    """Uses the previous step count from the eighth step on."""

    def step(self, closure=None):
        for state in self.state.values():
            if state["step"] == 7:
                state["step"] -= 1
        super().step(closure)


def stale_step(params, **options):
    return StaleStep(params, **options)


class LostMoments(FusedRAdam):
    """Forgets the second moment once."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            if state["step"] == 5:
                state["exp_avg_sq"].zero_()


def lost_moments(params, **options):
    return LostMoments(params, **options)


# An eps and a decay that are large enough to matter in float32.
OPTIONS = {"eps": 1e-3, "weight_decay": 0.1}

WRONG = [
    no_op,
    wrong_sign,
    wrong_threshold,
    misplaced_eps,
    never_rectified,
    otherwise_rectified,
    always_rectified,
    wrong_decay,
    swapped_betas,
    stale_step,
    lost_moments,
]


@pytest.mark.filterwarnings("ignore:no step is ever rectified")
@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_the_comparison_with_the_paper_catches(wrong):
    assert_true(fused, OPTIONS)
    with pytest.raises(AssertionError):
        assert_true(wrong, OPTIONS)


@pytest.mark.filterwarnings("ignore:no step is ever rectified")
@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_the_comparison_of_bits_catches(wrong):
    params = parameters((33,), (2, 2))
    steps = gradients(params, 12)
    right = train(fused(copies(params), **OPTIONS), steps)
    assert_same_run(right, train(fused(copies(params), **OPTIONS), steps))
    with pytest.raises(AssertionError):
        assert_same_run(right, train(wrong(copies(params), **OPTIONS), steps))


def test_the_comparison_of_bits_catches_one_unit_in_the_last_place():
    params = parameters((1000,))
    steps = gradients(params, 3)
    one, other = (train(fused(copies(params)), steps) for _ in range(2))
    [p] = other.param_groups[0]["params"]
    with torch.no_grad():
        p[500] = torch.nextafter(p[500], torch.tensor(9.0))
    with pytest.raises(AssertionError, match="1 of 1000 differ"):
        assert_same_run(one, other)
