"""An optimizer whose parameters have fixed gradients, and the timing of its steps."""

import gc
import time
from collections.abc import Callable
from functools import partial

import torch

from radam_fused import FusedRAdam
from radam_fused.benchmark.timing import WARM_UP

from ..rivals import parameters
from .cases import ADAMW, FIRST_STEP, LATE_STEP, OURS, RADAM, TENSORS, Recipe

# OpenMP's threads spin for some ms after a parallel region. The pause lets the threads of the other
# side fall asleep; the untimed steps wake up those of this side, each on its own core.
PAUSE = 0.02
UNTIMED = 0.01

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    OURS: partial(FusedRAdam, backend="cpu"),
    ADAMW: partial(torch.optim.AdamW, fused=True),
    RADAM: partial(torch.optim.RAdam, foreach=True),
}


def _parameters(recipe: Recipe) -> list[torch.nn.Parameter]:
    params = parameters(TENSORS[recipe.tensors])
    dtype = getattr(torch, recipe.dtype)
    if dtype == torch.float32:
        return params
    converted = [torch.nn.Parameter(p.detach().to(dtype)) for p in params]
    for p, original in zip(converted, params, strict=True):
        assert original.grad is not None
        p.grad = original.grad.to(dtype)
    return converted


def _optimizer(recipe: Recipe, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    size = len(params) // recipe.groups
    groups = [
        {"params": params[i * size : (i + 1) * size], "lr": 1e-3 * 0.999**i}
        for i in range(recipe.groups)
    ]
    return OPTIMIZERS[recipe.optimizer](groups)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


class Loop:
    """The optimizer of a recipe, after warm-up."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        params = _parameters(recipe)
        self._late = [(p, p.grad) for p in params[len(params) - recipe.late :]]
        for p, _ in self._late:
            p.grad = None
        self.step: Callable[[], object] = _optimizer(recipe, params).step
        for _ in range(WARM_UP):
            self.step()

    def _run_untimed(self) -> None:
        start = time.perf_counter()
        while True:
            self.step()
            if time.perf_counter() - start > UNTIMED:
                return

    def sample(self, event: str) -> float:
        """The seconds of one step, after a pause and untimed steps of the warm optimizer."""
        timed = self.step
        if event == FIRST_STEP:
            gc.collect()
            timed = _optimizer(self.recipe, _parameters(self.recipe)).step
        time.sleep(PAUSE)
        self._run_untimed()
        if event == LATE_STEP:
            param, gradient = self._late.pop()
            param.grad = gradient
        return _seconds(timed)
