"""The optimizer agrees with values computed by hand and with the paper in extended precision."""

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import OPTIONS, TORCH_OPTIONS, assert_true, gradients, parameters, true_errors


def test_two_steps_by_hand(backend):
    """beta1 = 0.5, beta2 = 0.75, lr = 1: every number is a short binary fraction."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = FusedRAdam([p], lr=1.0, betas=(0.5, 0.75), backend=backend)
    p.grad = torch.tensor([2.0, 4.0])
    optimizer.step()
    # m = g / 2, v = g^2 / 4, m_hat = g; rho_1 = 1, so p moves by m_hat.
    assert p.tolist() == [-1.0, -6.0]
    assert optimizer.state[p]["exp_avg"].tolist() == [1.0, 2.0]
    assert optimizer.state[p]["exp_avg_sq"].tolist() == [1.0, 4.0]
    p.grad = torch.tensor([4.0, 0.0])
    optimizer.step()
    # m = 1 + (4 - 1) / 2 and 2 + (0 - 2) / 2; m_hat = m / 0.75; v = 0.75 v + 0.25 g^2.
    assert optimizer.state[p]["exp_avg"].tolist() == [2.5, 1.0]
    assert optimizer.state[p]["exp_avg_sq"].tolist() == [4.75, 3.0]
    assert p.tolist() == pytest.approx([-1.0 - 2.5 / 0.75, -6.0 - 1.0 / 0.75], rel=1e-6)
    assert optimizer.state[p]["step"].item() == 2


def test_a_rectified_step_by_hand(backend):
    """The sixth step with the usual betas and a gradient of ones, from closed formulas."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = FusedRAdam([p], lr=1.0, backend=backend)
    for _ in range(6):
        p.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    # Five steps of m_hat = 1; then v_hat = 1, rho_6 = 5.99417 and r_6 = 0.025821.
    assert p.item() == pytest.approx(-5.025821, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_agrees_with_the_paper(options, dtype, backend):
    def make(params, **given):
        return FusedRAdam(params, backend=backend, **given)

    assert_true(make, options, dtype=dtype)


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize("options", TORCH_OPTIONS.values(), ids=TORCH_OPTIONS)
def test_no_less_exact_than_torch_over_hundreds_of_steps(options, foreach):
    """The error is at most twice that of torch, or two roundings larger."""

    def torch_radam(params, **given):
        return torch.optim.RAdam(params, foreach=foreach, **given)

    how = {"steps": 300, "lr": 3e-3}
    ours, theirs = true_errors(FusedRAdam, options, **how), true_errors(torch_radam, options, **how)
    for what in ("param", "exp_avg", "exp_avg_sq"):
        assert ours[what] <= 2 * theirs[what] + 2, (what, ours, theirs)


def test_rectify_false_is_torch_adam_adamw_and_amsgrad():
    rivals = {
        "adam": (torch.optim.Adam, {}, {}),
        "adamw": (
            torch.optim.AdamW,
            {"weight_decay": 0.1},
            {"weight_decay": 0.1, "decoupled_weight_decay": True},
        ),
        "amsgrad": (
            torch.optim.Adam,
            {"amsgrad": True, "betas": (0.9, 0.9)},
            {"amsgrad": True, "betas": (0.9, 0.9)},
        ),
    }
    for rival, theirs, ours in rivals.values():
        [p], [q] = parameters((1001,)), parameters((1001,))
        one = FusedRAdam([p], lr=1e-2, rectify=False, eps_after_bias_correction=True, **ours)
        other = rival([q], lr=1e-2, **theirs)
        for [g] in gradients([p], 100):
            p.grad, q.grad = g.clone(), g.clone()
            one.step()
            other.step()
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)
