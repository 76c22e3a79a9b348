"""Steps that are skipped, or raise, because of the norm of their gradients."""

import copy
from math import inf, nan

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.clipping import scaled
from .harness.helpers import (
    assert_same_bits,
    copies,
    gradients,
    parameters,
)
from .test_device_bits import assert_same_on_both, step_both


@pytest.mark.parametrize("options", [{"skip_nonfinite": True}, {"skip_above": 10.0}], ids=str)
@pytest.mark.parametrize("more", [{}, {"max_grad_norm": 1.0}, {"fused": True}], ids=str)
def test_a_skipped_step_changes_nothing(options, more, backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), weight_decay=0.1, backend=backend, **options, **more)
    eager = FusedRAdam(copies(params), weight_decay=0.1, backend="eager", **more)
    for t, grads in enumerate(gradients(params, 12)):
        if t % 3 == 1:
            worst = [nan, inf] if "skip_nonfinite" in options else [nan, inf, 100.0]
            grads[t % 2][0] = worst[t % len(worst)]
            step_both([ours], grads)
        else:
            step_both([ours, eager], grads)
        assert_same_on_both(ours, eager)
    assert ours.skipped_steps.item() == 4
    assert (ours.skipped_steps.dtype, ours.skipped_steps.shape) == (torch.int64, ())


def test_steps_are_counted_where_the_parameters_are():
    for options in ({"skip_nonfinite": True}, {"skip_above": 1.0}):
        p = torch.nn.Parameter(torch.zeros(3, device="meta"))
        optimizer = FusedRAdam([p], **options)
        assert optimizer._options.counts_on_device(optimizer.param_groups[0])
        assert set(optimizer.param_groups[0]) == set(FusedRAdam([p]).param_groups[0])
    assert not FusedRAdam._options.counts_on_device(optimizer.param_groups[0])


def test_a_norm_at_the_limit_is_no_reason_to_skip(backend):
    [p] = parameters((2,))
    optimizer = FusedRAdam([p], skip_above=5.0, backend=backend)
    for grad in ([3.0, 4.0], [3.0, 4.0000005]):
        p.grad = torch.tensor(grad)
        optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("value", [inf, nan])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_an_error_instead(value, limit, backend):
    params = parameters((30,), (7,))
    options = {"max_grad_norm": limit, "error_if_nonfinite": True}
    optimizer = FusedRAdam(params, backend=backend, **options)
    first, second, third = gradients(params, 3)
    step_both([optimizer], first)
    before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    second[1][3] = value
    with pytest.raises(RuntimeError, match=r"norm of order 2\.0 for gradients.*is non-finite"):
        step_both([optimizer], second)
    after = optimizer.state_dict()
    for index, state in before[0]["state"].items():
        for key in state:
            assert_same_bits(state[key], after["state"][index][key])
    for p, old in zip(params, before[1], strict=True):
        assert_same_bits(p.detach(), old)
    step_both([optimizer], third)
    assert optimizer.state[params[0]]["step"] == 2


def test_an_overflow_is_skipped_once(backend):
    params = parameters((30,), (7,))
    ours = FusedRAdam(copies(params), skip_nonfinite=True, fused=True, backend=backend)
    plain = FusedRAdam(copies(params), backend="cpu")
    for t, grads in enumerate(gradients(params, 8)):
        if t % 4 == 1:
            scaled(ours, [torch.full_like(g, inf) for g in grads], 4096.0, found_inf=1.0)
        else:
            scaled(ours, grads, 4096.0)
            step_both([plain], grads)
        assert_same_on_both(ours, plain)
    assert ours.skipped_steps == 2
