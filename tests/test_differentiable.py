"""Autograd differentiates through steps whose gradients have a history."""

import pytest
import torch

from radam_fused import FusedAdam, FusedRAdam

from .harness.helpers import OPTIONS

SMALL, LARGE = 5, 70_000  # moments of small parameters share blocks of memory
DECAY = {"weight_decay": 0.1}
CASES = {
    **{name: (FusedRAdam, options) for name, options in OPTIONS.items()},
    "decoupled": (FusedRAdam, {**DECAY, "decoupled_weight_decay": True}),
    "amsgrad-decoupled": (
        FusedRAdam,
        {**DECAY, "decoupled_weight_decay": True, "amsgrad": True, "betas": (0.9, 0.9)},
    ),
    "torch-adam": (FusedAdam, {**DECAY, "eps": 1e-2}),
}


def train(cls, start, lr, weight_decay, options, steps=7):
    """The sum of the squared parameters after steps on a loss that depends on them."""
    p = start.clone()
    options = {**options, "lr": lr, "weight_decay": weight_decay}
    optimizer = cls([p], differentiable=True, **options)
    for t in range(steps):
        with torch.enable_grad():
            point = p.clone()
            if not point.requires_grad:
                point.requires_grad_()
            loss = ((point - 0.3) ** 2 * (1 + 0.2 * t) + point.cos()).sum()
            [p.grad] = torch.autograd.grad(loss, point, create_graph=p.requires_grad)
        optimizer.step()
    return p.square().sum()


def inputs(size, options, requires_grad):
    start = torch.linspace(-1, 2, size, dtype=torch.float64)
    numbers = options.get("lr", 0.05), options.get("weight_decay", 0.0)
    scalars = [torch.tensor(x, dtype=torch.float64) for x in numbers]
    return [tensor.requires_grad_(requires_grad) for tensor in (start, *scalars)]


def differences(cls, options, which, index, size):
    """The central difference of the result by one number."""
    results, width = [], 1e-5
    for sign in (1, -1):
        given = inputs(size, options, True)
        with torch.no_grad():
            given[which].view(-1)[index] += sign * width
        results.append(train(cls, *given, options).item())
    return (results[0] - results[1]) / (2 * width)


SIZES = [(name, SMALL) for name in CASES] + [
    (name, LARGE) for name in ("decoupled", "amsgrad-decoupled", "torch-adam")
]


@pytest.mark.filterwarnings("ignore:no step is ever rectified")
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_derivatives_are_central_differences(name, size):
    cls, options = CASES[name]
    given = inputs(size, options, True)
    result = train(cls, *given, options)
    by = torch.autograd.grad(result, given, allow_unused=True)
    for which, index in ((0, 0), (0, size - 2), (1, 0), (2, 0)):
        if which == 2 and not options.get("weight_decay"):
            continue  # at 0, a step of the differences would be negative
        derivative = by[which].view(-1)[index].item()
        expected = differences(cls, options, which, index, size)
        assert derivative == pytest.approx(expected, rel=2e-4, abs=1e-6), (which, index)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_derivatives_are_those_of_torch(size):
    for options in ({}, DECAY, {**DECAY, "decoupled_weight_decay": True}):
        found = []
        for cls in (FusedRAdam, torch.optim.RAdam):
            start, lr, decay = inputs(size, options, True)
            result = train(cls, start, lr, decay.item(), options)  # torch takes no tensor
            found.append(torch.autograd.grad(result, (start, lr)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_the_bits_are_those_of_other_backends():
    start, lr, decay = inputs(SMALL, DECAY, False)
    options = {"decoupled_weight_decay": True}
    differentiable = train(FusedRAdam, start, lr, decay, options)

    def plain(params, differentiable, **options):
        return FusedRAdam(params, backend="cpu", **options)

    p = train(plain, start, lr.item(), decay.item(), options)
    assert torch.equal(differentiable, p)


def test_a_learning_rate_of_0_has_a_derivative():
    start = torch.ones(3, dtype=torch.float64)
    lr = torch.zeros((), dtype=torch.float64, requires_grad=True)
    result = train(FusedRAdam, start, lr, 0.0, {}, steps=1)
    [derivative] = torch.autograd.grad(result, lr)
    assert derivative != 0
