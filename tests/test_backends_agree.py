"""A training gives the same bits on every backend, also if the backend changes on the way."""

import copy
from itertools import product

import pytest
import torch

from radam_fused import FusedRAdam, backends

from .harness.backends import DEVICE_BACKENDS
from .harness.helpers import assert_same_bits

STEPS = 200  # the first rectified one is the sixth
CHANGE = 90  # of the backend
FREEZE, THAW = 30, 120  # a layer
DROP = 150  # of the learning rate

OPTIONS = {
    "default": {},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.01, "decoupled_weight_decay": True},
    "flat": {"flatten": True, "weight_decay": 0.01},
}

HERE = ["eager", "cpu", "cuda-grid", "triton-ptx"]
ON_A_GPU = ["cuda-gpu", "triton-gpu"]


def place(name, monkeypatch):
    """The name of a backend as the optimizer takes it, and the device of its tensors."""
    if name in ("eager", "cpu"):
        return name, torch.device("cpu")
    made = DEVICE_BACKENDS[name](monkeypatch)
    return made.name, made.device


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 33), torch.nn.Tanh(), torch.nn.Linear(33, 3))


def gradient(step, index, param):
    """A gradient that depends only on its arguments; backward passes are not compared."""
    generator = torch.Generator().manual_seed(1000 * step + index)
    return torch.randn(param.shape, generator=generator)


def train(net, optimizer, steps):
    for step in steps:
        for index, param in enumerate(net.parameters()):
            frozen = index == 0 and FREEZE <= step < THAW
            param.grad = None if frozen else gradient(step, index, param).to(param.device)
        if step == DROP:
            optimizer.param_groups[0]["lr"] = 0.003
        optimizer.step()


def checkpoint(net, optimizer):
    return copy.deepcopy({"net": net.state_dict(), "optimizer": optimizer.state_dict()})


def run(first, then, options, monkeypatch):
    """A training that moves from one backend to another: parameters and optimizer state."""
    before, after = model(), model()
    with monkeypatch.context() as patch:
        backend, device = place(first, patch)
        before.to(device)
        optimizer = FusedRAdam(before.parameters(), lr=0.01, backend=backend, **options)
        train(before, optimizer, range(CHANGE))
        saved = checkpoint(before, optimizer)
    with monkeypatch.context() as patch:
        backend, device = place(then, patch)
        after.load_state_dict(saved["net"])
        after.to(device)
        optimizer = FusedRAdam(after.parameters(), lr=0.01, backend=backend, **options)
        optimizer.load_state_dict(saved["optimizer"])
        train(after, optimizer, range(CHANGE, STEPS))
    return after, optimizer


def assert_same_end(one, other):
    (net, optimizer), (other_net, other_optimizer) = one, other
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        assert_same_bits(p.detach().cpu(), q.detach().cpu(), "parameter")
        state, other_state = optimizer.state[p], other_optimizer.state[q]
        assert set(state) == set(other_state)
        for key in state:
            assert_same_bits(state[key].cpu(), other_state[key].cpu(), key)


@pytest.fixture(scope="module")
def straight():
    """The reference: the eager backend from the first step to the last."""
    runs = {}
    for name, options in OPTIONS.items():
        net = model()
        optimizer = FusedRAdam(net.parameters(), lr=0.01, backend="eager", **options)
        train(net, optimizer, range(STEPS))
        runs[name] = net, optimizer
    return runs


PAIRS = [*product(HERE, HERE), *product([*HERE, *ON_A_GPU], ON_A_GPU), *product(ON_A_GPU, HERE)]


@pytest.mark.parametrize(("first", "then"), PAIRS, ids=lambda name: name)
def test_every_backend_continues_every_other(first, then, straight, monkeypatch):
    assert_same_end(run(first, then, {}, monkeypatch), straight["default"])


@pytest.mark.parametrize("options", ["amsgrad", "flat"])
@pytest.mark.parametrize("name", [*HERE, *ON_A_GPU])
def test_every_backend_continues_itself_with_other_options(name, options, straight, monkeypatch):
    assert_same_end(run(name, name, OPTIONS[options], monkeypatch), straight[options])


def test_every_backend_is_in_the_matrix():
    assert {name.partition("-")[0] for name in HERE} == {*backends.BACKENDS}


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.010001}, {"betas": (0.9, 0.9989)}, {"maximize": True}], ids=str
)
def test_a_training_with_another_option_is_noticed(wrong, straight):
    net = model()
    optimizer = FusedRAdam(net.parameters(), **{"lr": 0.01, "backend": "cpu", **wrong})
    train(net, optimizer, range(STEPS))
    with pytest.raises(AssertionError):
        assert_same_end((net, optimizer), straight["default"])


def test_a_lost_step_is_noticed(straight):
    net = model()
    optimizer = FusedRAdam(net.parameters(), lr=0.01, backend="cpu")
    train(net, optimizer, [*range(CHANGE), *range(CHANGE + 1, STEPS)])
    with pytest.raises(AssertionError):
        assert_same_end((net, optimizer), straight["default"])
