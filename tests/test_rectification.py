"""rho_t, r_t and the coefficients agree with high precision and with values of the paper."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from radam_fused import FusedRAdam, rectification
from radam_fused.rectification import Update, coefficients

from .harness import truth
from .harness.helpers import gradients, parameters, train
from .harness.truth import REAL

ACCURACY = 1e-15


def beta_near_one(exponent):
    return 1.0 - 10.0**exponent


BETAS = [0.5, 0.8, 0.9, 0.99, 0.999, 0.9999, 0.99999]

PLAIN = {
    "lr": 1.0,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "rectify": True,
    "rectify_threshold": 5.0,
    "exact_rectification": False,
    "degenerated_to_sgd": True,
    "eps_after_bias_correction": False,
    "absolute_weight_decay": False,
    "decay_skipped_steps": True,
}


@pytest.mark.parametrize("beta2", BETAS)
@pytest.mark.parametrize("step", [1, 2, 5, 6, 7, 100, 4001])
def test_rho_t_agrees_with_many_digits(beta2, step):
    assert_accurate(rectification.rho_t(step, beta2), truth.rho_t(step, beta2))


def assert_accurate(value, true, condition=1):
    assert abs(value - true) <= ACCURACY * condition * true, (value, true)


@given(
    beta=st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.floats(-16, -0.5).map(beta_near_one)),
    step=st.one_of(st.integers(1, 10**7), st.floats(1.0, 10**5)),
)
@example(beta=0.9999, step=10_000)
@example(beta=0.999, step=16_777_215)
@example(beta=1 - 2**-53, step=3)
@example(beta=0.999, step=10.5)
def test_rho_t_and_bias_corrections_are_accurate_at_every_step(beta, step):
    assert_accurate(rectification.rho_t(step, beta), truth.rho_t(step, beta))
    # 1 - beta^t, through the step size of plain momentum.
    options = {**PLAIN, "betas": (beta, 0.5), "rectify_threshold": 1e9}
    step_size = coefficients(step, **options).step_size
    assert_accurate(step_size, 1 / truth.bias_correction(step, beta))


@given(beta2=st.floats(0.68, 0.9999999), step=st.integers(5, 10**6))
def test_r_t_is_accurate_at_every_step(beta2, step):
    at = truth.rho_t(step, beta2)
    if at > 4 + 1e-12:
        computed = rectification.r_t(step, beta2, 4.0)
        condition = max(1, float(at / (at - 4)))
        assert_accurate(REAL(computed), truth.r(step, beta2), condition)


@pytest.mark.parametrize("backend_name", ["eager", "cpu"])
@pytest.mark.parametrize("count", [0.5, 9.25, 1234.8])
def test_a_fraction_in_a_step_count_is_used_as_by_torch(count, backend_name):
    def stepped(make):
        params = parameters((7,), dtype=torch.float64)
        optimizer = make(params)
        train(optimizer, gradients(params, 1))
        optimizer.state[params[0]]["step"].fill_(count)
        train(optimizer, gradients(params, 1, seed=5))
        return params[0].detach()

    for betas in ((0.9, 0.999), (0.5, 0.9)):
        ours = stepped(lambda params: FusedRAdam(params, betas=betas, backend=backend_name))  # noqa: B023
        theirs = stepped(lambda params: torch.optim.RAdam(params, betas=betas))  # noqa: B023
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_rho_of_the_first_step_is_one():
    for beta2 in BETAS:
        assert float(truth.rho_t(1, beta2)) == 1.0
        assert rectification.rho_t(1, beta2) == 1.0


def test_known_values_at_the_usual_beta2():
    assert rectification.rho_inf(0.999) == pytest.approx(1999.0)
    assert rectification.rho_t(5, 0.999) == pytest.approx(4.996, abs=1e-3)
    assert [rectification.r_t(t, 0.999) > 0 for t in (5, 6)] == [False, True]
    # The threshold of the paper rectifies one step earlier.
    assert [rectification.r_t(t, 0.999, 4.0) > 0 for t in (4, 5)] == [False, True]


@given(
    beta2=st.floats(0.68, 0.99999), step=st.integers(1, 300), threshold=st.sampled_from([4.0, 5.0])
)
def test_r_t_agrees_with_many_digits(beta2, step, threshold):
    exact = truth.rho_t(step, beta2)
    computed = rectification.r_t(step, beta2, threshold)
    if abs(exact - threshold) < 1e-12:
        return  # too near the threshold for float64
    if exact <= threshold:
        assert computed == 0.0
    else:
        # Near 4 the square is a small difference of rho_t.
        slack = 1e-14 * float(exact / (exact - 4))
        assert computed == pytest.approx(float(truth.r(step, beta2)), rel=1e-13 + slack)


@given(rho=st.one_of(st.floats(2.0, 40.0, exclude_min=True), st.floats(40.0, 1e9)))
@example(rho=4.0)
@example(rho=2.0 + 2.0**-50)
@example(rho=2e16)
def test_the_exact_variance_agrees_with_the_beta_function(rho):
    true = truth.variance(rho)
    assert abs(rectification.variance(rho, exact=True) / true - 1) < 4e-15


def test_known_variances():
    assert rectification.variance(5.0) == pytest.approx(5 / 6)
    assert rectification.variance(5.0, exact=True) == pytest.approx(0.251956, abs=1e-6)
    # The variance of 1 / |g| with chi-squared of three degrees of freedom is 3 (1 - 2 / pi).
    assert rectification.variance(3.0, exact=True) == pytest.approx(3 * (1 - 2 / np.pi), rel=1e-14)


@given(beta2=st.floats(0.68, 0.9999999), step=st.integers(3, 300))
def test_the_exact_r_t_agrees_with_the_beta_function(beta2, step):
    at = float(truth.rho_t(step, beta2))
    if at > 2 + 1e-12:
        computed = rectification.r_t(step, beta2, 2.0, exact=True)
        # Near 2 the variance is one over a small difference of rho_t.
        slack = 1e-14 * at / (at - 2)
        expected = float(truth.r(step, beta2, exact=True))
        assert computed == pytest.approx(expected, rel=1e-13 + slack)


def test_exact_rectification_can_begin_at_the_third_step():
    options = {"rectify_threshold": 2.0, "exact_rectification": True}
    kinds = [coefficients(t, **PLAIN | options).update for t in (1, 2, 3)]
    assert kinds == [Update.MOMENTUM, Update.MOMENTUM, Update.RECTIFIED]


@pytest.mark.parametrize("exact", [False, True])
def test_r_t_increases_to_one(exact):
    values = [rectification.r_t(t, 0.99, exact=exact) for t in range(1, 2000)]
    assert np.all(np.diff(values) >= -1e-15)
    assert values[-1] == pytest.approx(1.0, abs=1e-6)
    assert max(values) <= 1.0


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.6, 2 / 3])
def test_small_beta2_never_rectifies_and_warns(beta2):
    assert all(rectification.r_t(t, beta2) == 0.0 for t in range(1, 1000))
    with pytest.warns(UserWarning, match="no step is ever rectified") as caught:
        FusedRAdam(parameters((2,)), betas=(0.9, beta2))
    assert caught[0].filename == __file__


def test_usual_beta2_does_not_warn():
    FusedRAdam(parameters((2,)))
    FusedRAdam(parameters((2,)), betas=(0.9, 0.5), rectify=False)


def test_coefficients_of_the_three_updates():
    first, rectified = coefficients(1, **PLAIN), coefficients(6, **PLAIN)
    assert (first.update, rectified.update) == (Update.MOMENTUM, Update.RECTIFIED)
    assert first.step_size == pytest.approx(1 / (1 - 0.9))
    expected = truth.r(6, 0.999) * np.sqrt(1 - 0.999**6) / (1 - 0.9**6)
    assert rectified.step_size == pytest.approx(float(expected), rel=1e-10)
    skipped = coefficients(1, **{**PLAIN, "degenerated_to_sgd": False})
    assert (skipped.update, skipped.step_size) == (Update.NONE, 0.0)


def test_coefficients_of_decay():
    def decay(step=6, **options):
        c = coefficients(step, **{**PLAIN, "lr": 0.5, "weight_decay": 0.1, **options})
        return c.l2, c.decay

    assert decay() == (0.1, 1.0)
    assert decay(decoupled_weight_decay=True) == (0.0, 0.95)
    assert decay(decoupled_weight_decay=True, absolute_weight_decay=True) == (0.0, 0.9)
    skip = {"decoupled_weight_decay": True, "degenerated_to_sgd": False}
    assert decay(1, **skip) == (0.0, 0.95)
    assert decay(1, **skip, decay_skipped_steps=False) == (0.0, 1.0)


def test_late_eps_is_scaled_by_the_bias_correction():
    late = coefficients(6, **{**PLAIN, "eps_after_bias_correction": True})
    assert late.eps == pytest.approx(1e-8 * np.sqrt(1 - 0.999**6), rel=1e-12)


def test_rectification_for_loggers():
    params = parameters((3,), (2,))
    optimizer = FusedRAdam(
        [{"params": params[:1]}, {"params": params[1:], "betas": (0.9, 0.99), "lr": 0.5}], lr=0.1
    )
    assert [entry.step for entry in optimizer.rectification()] == [0, 0]
    train(optimizer, gradients(params, 3))
    slow, quick = optimizer.rectification()
    assert (slow.step, slow.rectified, slow.r_t, slow.step_size) == (3, False, 0.0, 0.1)
    train(optimizer, gradients(params, 7))
    slow, quick = optimizer.rectification()
    for entry, beta2, lr in ((slow, 0.999, 0.1), (quick, 0.99, 0.5)):
        assert entry.rectified
        assert entry.rho_t == pytest.approx(float(truth.rho_t(10, beta2)))
        assert entry.r_t == pytest.approx(float(truth.r(10, beta2)))
        assert entry.step_size == pytest.approx(lr * entry.r_t)
    assert all(isinstance(value, float) for value in (quick.rho_t, quick.r_t, quick.step_size))


def test_exact_rectification_for_loggers():
    params = parameters((3,))
    optimizer = FusedRAdam(params, exact_rectification=True)
    train(optimizer, gradients(params, 6))
    [entry] = optimizer.rectification()
    assert entry.r_t == pytest.approx(float(truth.r(6, 0.999, exact=True)))


def test_rectification_with_a_tensor_learning_rate_and_without_rectification():
    params = parameters((3,))
    optimizer = FusedRAdam(params, lr=torch.tensor(0.25), rectify=False)
    train(optimizer, gradients(params, 1))
    [entry] = optimizer.rectification()
    assert (entry.r_t, entry.rectified, entry.step_size) == (1.0, True, 0.25)
