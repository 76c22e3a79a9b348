"""Processes that share parameters and state (Hogwild), and optimizers that are sent to others."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

import pytest
import torch
import torch.multiprocessing as mp

from radam_fused import FusedRAdam

from .harness.helpers import parameters

STEPS = 5


def optimizer_of(params, states):
    optimizer = FusedRAdam(params, lr=0.1, backend="cpu")
    for p, state in zip(params, states, strict=True):
        optimizer.state[p] = dict(state)
    return optimizer


def worker(params, states):
    optimizer = optimizer_of(params, states)
    for _ in range(STEPS):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    for p, state in zip(params, states, strict=True):
        for name, tensor in state.items():
            assert optimizer.state[p][name] is tensor


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_parameters_moments_and_counters(method):
    params = [p.share_memory_() for p in parameters((33,), (4, 5))]
    states = [
        {
            "step": torch.zeros(()).share_memory_(),
            "exp_avg": torch.zeros_like(p).share_memory_(),
            "exp_avg_sq": torch.zeros_like(p).share_memory_(),
        }
        for p in params
    ]
    start = [p.detach().clone() for p in params]
    mine = optimizer_of(params, states)
    for turn in (1, 2):  # one after the other, so that the result is known
        process = mp.get_context(method).Process(target=worker, args=(params, states))
        process.start()
        process.join(120)
        assert process.exitcode == 0
        for p in params:
            p.grad = torch.ones_like(p)
        mine.step()
        for p, state in zip(params, states, strict=True):
            assert state["step"] == turn * (STEPS + 1)
            assert mine.state[p]["step"] is state["step"]
            assert state["step"].is_shared()
            assert p.is_shared()
    alone = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = FusedRAdam(alone, lr=0.1, backend="cpu")
    for _ in range(2 * (STEPS + 1)):
        for p in alone:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert all(map(torch.equal, params, alone))


def trained(cls, **options):
    params = parameters((33,), (64, 16), (4, 5))
    optimizer = cls(params, lr=0.1, **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer


def step_once(optimizer):
    """A step, and what it has made of the parameters. A pickle contains no gradients."""
    params = optimizer.param_groups[0]["params"]
    for p in params:
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("flatten", [False, True])
def test_a_pickle_is_as_large_as_that_of_torch(flatten):
    """Small moments share blocks of memory, and flat parameters a buffer; a pickle has neither."""
    ours, theirs = trained(FusedRAdam, flatten=flatten), trained(torch.optim.RAdam)
    for one, other in ((ours, theirs), (ours.state_dict(), theirs.state_dict())):
        assert len(pickle.dumps(one)) < len(pickle.dumps(other)) + 500


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle", "joblib"])
@pytest.mark.parametrize("flatten", [False, True])
def test_an_optimizer_steps_in_the_process_that_it_was_sent_to(pickler, flatten, tmp_path):
    module = pytest.importorskip(pickler)
    optimizer = trained(FusedRAdam, flatten=flatten)
    with open(tmp_path / "optimizer", "wb") as file:
        module.dump(optimizer, file)
    with ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
        there = pool.submit(load_and_step, pickler, str(tmp_path / "optimizer")).result(120)
    assert all(map(torch.equal, there, step_once(optimizer)))


def load_and_step(pickler, path):
    with open(path, "rb") as file:
        return step_once(import_module(pickler).load(file))
