"""Processes that share parameters and state (Hogwild)."""

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
