"""Measures flat buffers and flat gradients on the CPU."""

import warnings
from collections.abc import Callable

import torch

from radam_fused import FusedRAdam
from radam_fused.benchmark.timing import Timing, interleave

from .cases import CASES, Shapes, elements
from .rivals import OURS, parameters

FLAT = f"{OURS} flatten=True"
FLAT_GRADIENTS = f"{OURS} flatten=True, flat gradients"
AS_ONE = f"{OURS} on one tensor of as many elements"
READING = "reading the gradients' addresses"

Steps = dict[str, Callable[[], object]]


def _optimizers(shapes: Shapes) -> dict[str, FusedRAdam]:
    optimizers = {
        OURS: FusedRAdam(parameters(shapes), backend="cpu"),
        FLAT: FusedRAdam(parameters(shapes), backend="cpu", flatten=True),
        FLAT_GRADIENTS: FusedRAdam(parameters(shapes), backend="cpu", flatten=True),
    }
    optimizers[FLAT_GRADIENTS].flat_buffers[0].flatten_gradients()
    return optimizers


def _reading(shapes: Shapes) -> Callable[[], object]:
    params = parameters(shapes)
    return lambda: [p.grad.data_ptr() for p in params if p.grad is not None]


def _cycle(optimizer: FusedRAdam) -> Callable[[], object]:
    """A cycle: zeroing, a backward pass that computes every gradient once, and a step."""
    params = optimizer.param_groups[0]["params"]
    seeds = [torch.ones_like(p) for p in params]

    def cycle() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(torch._foreach_mul(params, 0.5), seeds)
        optimizer.step()

    return cycle


def time_steps(case: str) -> dict[str, Timing]:
    """Time the step on separate and on flat tensors, and two lower bounds."""
    warnings.simplefilter("ignore")
    shapes = CASES[case]
    steps: Steps = {name: opt.step for name, opt in _optimizers(shapes).items()}
    one = FusedRAdam(parameters([(elements(shapes),)]), backend="cpu")
    steps |= {AS_ONE: one.step, READING: _reading(shapes)}
    return interleave(steps, 201, f"{case}, flat")


def time_cycles(case: str) -> dict[str, Timing]:
    """Time whole cycles, in which flat gradients are zeroed and accumulated into."""
    warnings.simplefilter("ignore")
    shapes = CASES[case]
    optimizers = _optimizers(shapes)
    steps: Steps = {name: _cycle(optimizer) for name, optimizer in optimizers.items()}
    return interleave(steps, 15 if elements(shapes) > 10**8 else 61, f"{case}, cycles")
