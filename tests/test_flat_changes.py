"""Flat buffers follow changes of parameters and groups, and copies of the optimizer."""

import copy
import gc
import weakref

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import (
    assert_same_bits,
    assert_same_run,
    copies,
    gradients,
    parameters,
    sharded,
    train,
)

MOVES = {
    "re-pointed": lambda p: setattr(p, "data", p.detach().clone()),
    "swapped": lambda p: setattr(p, "data", p.detach()[torch.arange(len(p)).flip(0)]),
    "gapped": lambda p: setattr(p, "data", torch.arange(2.0 * len(p))[::2]),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("steps", [0, 2])
def test_other_memory_is_taken_over_into_the_buffer(move, steps, backend):
    """As of wrappers that restore a copy, for sharpness-aware minimization."""
    params = parameters((5,), (64,))
    flat = FusedRAdam(copies(params), backend=backend, flatten=True)
    plain = FusedRAdam(copies(params), backend="cpu")
    for optimizer in (flat, plain):
        train(optimizer, gradients(params, steps))
        move(optimizer.param_groups[0]["params"][1])
        train(optimizer, gradients(params, 7))
    assert_same_run(flat, plain)
    flat.flat_buffers[0].check()


LEAVES = {
    "half": (lambda p: setattr(p, "data", p.detach().half()), "torch.float16"),
    "resized": (lambda p: setattr(p, "data", torch.ones(7)), r"shape \(7,\)"),
    "shared": (lambda p: p.share_memory_(), "in shared memory"),
}


@pytest.mark.parametrize(("leave", "what"), LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_parameter_that_cannot_return_raises_with_its_name(leave, what, steps, backend):
    params = parameters((5,), (64,))
    named = [("first", params[0]), ("second", params[1])]
    optimizer = FusedRAdam(named, backend=backend, flatten=True)
    train(optimizer, gradients(params, steps))
    leave(params[1])
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != params[1].shape and len(state[name]) > 5:
                state[name] = torch.zeros_like(params[1])
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    message = f"parameter 'second' cannot return to its flat buffer: it has become .*{what}"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    for p, was in zip(params, before, strict=True):
        assert_same_bits(p.detach(), was)


def train_groups(optimizer, steps, seed=1):
    """Train the parameters of all groups, with the same gradients for the same shapes."""
    for t in range(steps):
        for group in optimizer.param_groups:
            for p in filter(lambda p: p.requires_grad, group["params"]):
                draw = torch.Generator().manual_seed(1000 * seed + 100 * t + p.numel())
                p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()


def reverse(optimizer):
    optimizer.param_groups.reverse()


def pop(optimizer):
    optimizer.param_groups.pop(0)


def merge(optimizer):
    optimizer.param_groups[0]["params"] += optimizer.param_groups.pop(1)["params"]


def append(optimizer):
    optimizer.param_groups[0]["params"].append(parameters((11,), seed=3)[0])


def replace(optimizer):
    optimizer.param_groups[1]["params"][0] = parameters((13,), seed=4)[0]


def freeze_and_free(optimizer):
    p = optimizer.param_groups[0]["params"][0].requires_grad_(False)
    p.grad, p.data = None, torch.empty(0)


def freeze_and_cast(optimizer):
    p = optimizer.param_groups[0]["params"][0].requires_grad_(False)
    p.grad, p.data = None, p.detach().half()


CHANGES = [reverse, pop, merge, append, replace, freeze_and_free, freeze_and_cast]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_buffers_follow_changes_of_the_groups(change, backend):
    params = parameters((5,), (64,), (7,))

    def run(**options):
        groups = [{"params": [p], "lr": 10.0 ** -(1 + i)} for i, p in enumerate(copies(params))]
        optimizer = FusedRAdam(groups, **options)
        train_groups(optimizer, 2)
        change(optimizer)
        train_groups(optimizer, 7, seed=2)
        return optimizer

    flat, plain = run(backend=backend, flatten=True), run(backend="cpu")
    assert_same_run(flat, plain)
    assert_same_run(copy.deepcopy(flat), plain)


def test_a_shallow_copy_leaves_the_original_alone(backend):
    params = parameters((5,), (64,))
    flat = FusedRAdam(copies(params), backend=backend, flatten=True)
    plain = FusedRAdam(copies(params), backend="cpu")
    train_groups(flat, 2)
    train_groups(plain, 2)
    twin = copy.copy(flat)
    assert twin.flat_buffers is flat.flat_buffers
    for p, q in zip(flat.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True):
        assert p is q
    flat.flat_buffers[0].check()
    for optimizer in (flat, twin):
        train_groups(optimizer, 3)
        train_groups(plain, 3)
    assert_same_run(flat, plain)


def test_memory_of_another_library_is_not_taken():
    """As of the buckets of ZeroRedundancyOptimizer, which broadcasts them after the step."""
    params = parameters((5,), (64,))
    optimizer = FusedRAdam(params, flatten=True)
    bucket = torch.cat([p.detach() for p in params])
    params[0].data, params[1].data = bucket[:5], bucket[5:]
    before = bucket.clone()
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 cannot return .* other values"):
        optimizer.step()
    assert torch.equal(bucket, before)
    assert not optimizer.state


def test_buffers_of_replaced_parameters_are_released():
    """A framework that shards a model replaces the parameters in the groups."""
    optimizer = FusedRAdam(parameters((5,), (64,)), flatten=True)
    train(optimizer, gradients(optimizer.param_groups[0]["params"], 2))
    old = weakref.ref(optimizer.flat_buffers[0].buffers[0].data)
    optimizer.param_groups[0]["params"] = new = parameters((5,), (64,))
    optimizer.state.clear()
    plain = FusedRAdam(copies(new), backend="cpu")
    steps = gradients(new, 7)
    for one in (optimizer, plain):
        train(one, steps)
    assert_same_run(optimizer, plain)
    gc.collect()
    assert old() is None
    assert str(optimizer.flat_buffers[0]) == "no parameters"


def test_dtensors_in_the_place_of_flat_parameters_are_an_error(mesh):
    optimizer = FusedRAdam(parameters((4,)), flatten=True)
    param = torch.nn.Parameter(sharded(torch.ones(4), mesh))
    param.grad = sharded(torch.ones(4), mesh)
    optimizer.param_groups[0]["params"] = [param]
    with pytest.raises(RuntimeError, match=r"flatten=True cannot move parameter 0 .* DTensor"):
        optimizer.step()
