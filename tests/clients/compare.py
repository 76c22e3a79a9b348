"""Comparison of runs under a client: with torch.optim.RAdam, and resumed with uninterrupted."""

import torch

from radam_fused import FusedRAdam

from ..harness.helpers import assert_same_bits

OPTIMIZERS = {"ours": FusedRAdam, "torch": torch.optim.RAdam}


def assert_fused(optimizer):
    """Check that the fused backend steps every parameter that has a state."""
    assert isinstance(optimizer, FusedRAdam)
    assert list(optimizer.backends()) == ["cpu"]
    assert optimizer.state


def assert_close(model, other):
    """Check that two runs end at the same parameters, within rounding."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def assert_same(model, other):
    """Check that two runs end at the same bits."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.is_floating_point():
            assert_same_bits(p.detach(), q.detach(), name)
        else:
            assert torch.equal(p, q), name


def assert_moved(model, start):
    """Check that every trained parameter has left its first value, so that a comparison counts."""
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert not torch.equal(p.detach(), start[name]), name
