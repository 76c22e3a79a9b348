"""Wrappers of pytorch_optimizer: Lookahead, and sharpness-aware minimization."""

import copy

import pytest
import torch
from torch import nn

wrappers = pytest.importorskip("pytorch_optimizer")

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_same  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def backward(model):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("flatten", [False, True])
def test_lookahead(flatten):
    models = {}
    for which, cls in OPTIMIZERS.items():
        model = new_model()
        options = {"flatten": flatten} if which == "ours" else {}
        optimizer = wrappers.Lookahead(cls(model.parameters(), lr=5e-3, **options), k=3)
        for _ in range(10):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
        models[which] = model
        if which == "ours":
            assert_fused(optimizer.optimizer)
    assert_close(models["ours"], models["torch"])


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_aware_minimization(adaptive):
    models = {}
    for which, cls in OPTIMIZERS.items():
        model = new_model()
        optimizer = wrappers.SAM(model.parameters(), cls, rho=0.05, adaptive=adaptive, lr=5e-3)
        for _ in range(10):
            backward(model)
            optimizer.first_step(zero_grad=True)
            backward(model)
            optimizer.second_step(zero_grad=True)
        models[which] = model
        if which == "ours":
            assert_fused(optimizer.base_optimizer)
    assert_close(models["ours"], models["torch"])


def lookahead(model):
    return wrappers.Lookahead(OPTIMIZERS["ours"](model.parameters(), lr=5e-3), k=2)


def sharpness_aware(model):
    return wrappers.SAM(model.parameters(), OPTIMIZERS["ours"], lr=5e-3)


@pytest.mark.parametrize("wrap", [lookahead, sharpness_aware])
def test_a_wrapped_optimizer_resumes_bit_for_bit(wrap):
    """From the states of the optimizer inside and of the wrapper, after whole rounds of both."""

    def train(model, optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            backward(model)
            if wrap is lookahead:
                optimizer.step()
            else:
                optimizer.first_step(zero_grad=True)
                backward(model)
                optimizer.second_step()

    def inner(optimizer):
        return optimizer.optimizer if wrap is lookahead else optimizer.base_optimizer

    model = new_model()
    optimizer = wrap(model)
    train(model, optimizer)
    saved = copy.deepcopy([model.state_dict(), inner(optimizer).state_dict()])
    train(model, optimizer)
    resumed = new_model()
    resumed.load_state_dict(saved[0])
    other = wrap(resumed)  # the slow weights are those of the model after a whole round
    inner(other).load_state_dict(saved[1])
    train(resumed, other)
    assert_same(resumed, model)
