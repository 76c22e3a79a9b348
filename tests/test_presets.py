"""Each preset agrees with its implementation, or with a restatement of its formula."""

import math

import pytest
import torch

from radam_fused import PRESETS, FusedRAdam

from .harness.helpers import copies, gradients, parameters, train

optimi = pytest.importorskip("optimi")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

LR, DECAY, STEPS = 0.01, 0.1, 40


def official(p, m, v, g, t, eps=1e-8, beta1=0.9, beta2=0.999):
    """LiyuanLucasLiu/RAdam with degenerated_to_sgd=False: decay and step only where N_sma >= 5."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    n_max = 2 / (1 - beta2) - 1
    n = n_max - 2 * t * beta2**t / (1 - beta2**t)
    if n >= 5:
        rate = math.sqrt(
            (1 - beta2**t) * (n - 4) / (n_max - 4) * (n - 2) / n * n_max / (n_max - 2)
        ) / (1 - beta1**t)
        p = p - DECAY * LR * p
        p = p - rate * LR * m / (v.sqrt() + eps)
    return p, m, v


def labml(p, m, v, g, t, eps=1e-8, beta1=0.9, beta2=0.999):
    """labml_nn: decay first and always, SGD before the threshold, optimized_update."""
    p = p * (1 - LR * DECAY)
    m, v = m * beta1 + g * (1 - beta1), v * beta2 + g * g * (1 - beta2)
    correction1, correction2 = 1 - beta1**t, 1 - beta2**t
    limit = 2 / (1 - beta2) - 1
    at = limit - 2 * t * beta2**t / correction2
    if at >= 5:
        r2 = (at - 4) / (limit - 4) * (at - 2) / at * limit / (limit - 2)
        p = p - LR * math.sqrt(correction2 * r2) / correction1 * m / (v.sqrt() + eps)
    else:
        p = p - LR / correction1 * m
    return p, m, v


def keras(p, m, v, g, t, eps=1e-7, beta1=0.9, beta2=0.999):
    """keras-radam: corrected moments, decay added to the update."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    m_corrected, v_corrected = m / (1 - beta1**t), (v / (1 - beta2**t)).sqrt()
    limit = 2 / (1 - beta2) - 1
    at = limit - 2 * t * beta2**t / (1 - beta2**t)
    if at >= 5:
        r = math.sqrt((at - 4) / (limit - 4) * (at - 2) / (limit - 2) * limit / at)
        update = r * m_corrected / (v_corrected + eps)
    else:
        update = m_corrected
    return p - LR * (update + DECAY * p), m, v


def optax(p, m, v, g, t, eps=1e-8, beta1=0.9, beta2=0.999):
    """optax.radam without decay: threshold 5.0, eps_root 0."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    limit = 2 / (1 - beta2) - 1
    at = limit - 2 * t * beta2**t / (1 - beta2**t)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    if at >= 5.0:
        r = math.sqrt((at - 4) * (at - 2) * limit / ((limit - 4) * (limit - 2) * at))
        return p - LR * r * m_hat / (v_hat.sqrt() + eps), m, v
    return p - LR * m_hat, m, v


def paper(p, m, v, g, t, beta1=0.9, beta2=0.999):
    """Algorithm 2: threshold 4, no eps, no decay."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    limit = 2 / (1 - beta2) - 1
    at = limit - 2 * t * beta2**t / (1 - beta2**t)
    if at > 4:
        adaptive = ((1 - beta2**t) / v).sqrt()
        r = math.sqrt((at - 4) * (at - 2) * limit / ((limit - 4) * (limit - 2) * at))
        return p - LR * r * m_hat * adaptive, m, v
    return p - LR * m_hat, m, v


RESTATED = {"official": official, "labml": labml, "keras": keras, "optax": optax, "paper": paper}
UNDECAYED = {"optax", "paper"}


def restated_run(name, start, steps):
    p, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, [g] in enumerate(steps, 1):
        p, m, v = RESTATED[name](p, m, v, g.double(), t)
    return p


def preset_run(name, start, steps, decay=True):
    [p] = copies([start])
    extra = {"weight_decay": DECAY} if decay else {}
    train(FusedRAdam([p], lr=LR, **extra, **PRESETS[name]), steps)
    return p.detach()


@pytest.mark.parametrize("steps", [3, STEPS], ids=["before-the-threshold", "after-it"])
@pytest.mark.parametrize("name", RESTATED)
def test_a_preset_agrees_with_its_formula(name, steps):
    [start] = parameters((50,), dtype=torch.float64)
    grads = gradients([start], steps)
    ours = preset_run(name, start, grads, decay=name not in UNDECAYED)
    # keras adds the decay of the old parameter to the update, which differs only by rounding.
    torch.testing.assert_close(ours, restated_run(name, start.detach(), grads), rtol=1e-9, atol=0)


PACKAGES = {
    "torch": lambda p: torch.optim.RAdam([p], lr=LR, weight_decay=DECAY),
    "optimi": lambda p: optimi.RAdam([p], lr=LR, weight_decay=DECAY),
    "pytorch_optimizer": lambda p: pytorch_optimizer.RAdam([p], lr=LR, weight_decay=DECAY),
}


@pytest.mark.parametrize("steps", [3, STEPS], ids=["before-the-threshold", "after-it"])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_preset_agrees_with_the_installed_package(name, steps):
    [start] = parameters((50,))
    grads = gradients([start], steps)
    [theirs] = copies([start])
    train(PACKAGES[name](theirs), grads)
    ours = preset_run(name, start, grads)
    torch.testing.assert_close(ours, theirs.detach(), rtol=2e-5, atol=2e-6)


def test_every_preset_is_tested_and_differs_from_the_others():
    assert set(PRESETS) == {*RESTATED, *PACKAGES}
    [start] = parameters((50,))
    grads = gradients([start], 7, scale=1e-7)  # so small that every eps matters
    ends = {name: preset_run(name, start, grads, decay=True).numpy().tobytes() for name in PRESETS}
    assert ends["pytorch_optimizer"] == ends["official"]
    assert len(set(ends.values())) == len(ends) - 1


def test_presets_are_read_only():
    with pytest.raises(TypeError):
        PRESETS["torch"]["lr"] = 1.0
    with pytest.raises(TypeError):
        PRESETS["mine"] = {}


def test_the_paper_s_missing_eps_does_not_divide_zero_by_zero():
    [p] = parameters((5,))
    before = p.detach().clone()
    train(FusedRAdam([p], **PRESETS["paper"]), [[torch.zeros(5)]] * 8)
    assert torch.equal(p, before)
