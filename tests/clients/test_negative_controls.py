"""The comparisons of this folder fail where a run differs."""

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam

from .compare import OPTIMIZERS, assert_close, assert_fused, assert_moved, assert_same


def trained(cls=FusedRAdam, steps=8, restart_at=None, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = cls(model.parameters(), **{"lr": 5e-3, **options})
    for step in range(steps):
        if step == restart_at:
            optimizer = cls(model.parameters(), **{"lr": 5e-3, **options})
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_the_same_run_passes():
    (ours, optimizer), (theirs, _) = map(trained, OPTIMIZERS.values())
    assert_close(ours, theirs)
    assert_same(ours, trained()[0])
    assert_fused(optimizer)


@pytest.mark.parametrize(
    "options", [{"lr": 5.05e-3}, {"betas": (0.89, 0.999)}, {"steps": 7}], ids=str
)
def test_another_run_fails(options):
    with pytest.raises(AssertionError):
        assert_close(trained(**options)[0], trained(torch.optim.RAdam)[0])


def test_a_resumed_run_without_its_moments_fails():
    with pytest.raises(AssertionError):
        assert_same(trained(restart_at=4)[0], trained()[0])


def test_a_run_of_eager_fails():
    with pytest.raises(AssertionError):
        assert_fused(trained(backend="eager")[1])


def test_a_run_without_steps_fails():
    model, _ = trained(steps=0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(AssertionError):
        assert_moved(model, start)
