"""Measures what a stored format costs in accuracy: in training, and in each update."""

import statistics
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from radam_fused import FusedRAdam
from radam_fused.backends.eager import step_
from radam_fused.option_sets import RADAM
from radam_fused.rectification import coefficients

from .format_bytes import (
    COPIES,
    FLOAT32,
    FLOAT32_MOMENTS,
    FORMATS,
    SPLIT,
    SPLIT_MOMENTS,
)
from .paper.training import TASKS, over_cores

TASK = TASKS["bytes"]
LR = 6e-3  # the best for float32 of 1e-3, 3e-3 and 6e-3
SEEDS = (0, 1, 2)
STEPS = 2000

# float32 masters hold what split ones hold, until a value is half-way between two bfloat16 numbers.
TRAINED = [name for name in FORMATS if name != COPIES]
EQUAL = (FLOAT32_MOMENTS, SPLIT, SPLIT_MOMENTS)

SAMPLE = 256  # elements of each tensor, whose gradients are recorded
NEAREST = "both moments to nearest"
STOCHASTIC = 'moments="bfloat16"'
LARGEST_ERROR = 0.03


def _training(model: nn.Module, optimizer: FusedRAdam, steps: int, seed: int) -> Iterator[None]:
    """Train, with a learning rate that decays linearly to 0; yield after each backward pass."""
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / steps)
        optimizer.zero_grad()
        TASK.loss(model, seed * 1_000_000 + step).backward()  # type: ignore[no-untyped-call]
        yield None
        optimizer.step()


def train(name: str, steps: int, seed: int) -> float:
    """Train the transformer of the demo.

    Args:
        name: Name of the format. Forward and backward pass have the dtype of its parameters.
        steps: Number of steps.
        seed: Of the initial weights and the batches.

    Returns:
        The loss on held-out text of the exported float32 weights, computed in float32.
    """
    torch.manual_seed(seed)
    wide = TASK.model()
    model = deepcopy(wide).to(FORMATS[name].dtype)
    optimizer = FusedRAdam(model.named_parameters(), lr=LR, **FORMATS[name].options)
    for _ in _training(model, optimizer, steps, seed):
        pass
    with torch.no_grad():
        for param, value in zip(wide.parameters(), optimizer.master_params(), strict=True):
            param.copy_(value)
        return TASK.score(wide)


def gradients(steps: int) -> list[list[Tensor]]:
    """Gradients of a float32 training run: of every step, a sample of each tensor."""
    torch.manual_seed(0)
    model = TASK.model()
    params = list(model.parameters())
    places = [torch.randperm(p.numel())[:SAMPLE] for p in params]
    return [
        [p.grad.flatten()[at] for p, at in zip(params, places, strict=True) if p.grad is not None]
        for _ in _training(model, FusedRAdam(params, lr=LR), steps, seed=0)
    ]


def updates(stream: Sequence[Sequence[Tensor]], **options: Any) -> Iterator[Tensor]:
    """The update of every step: what it does to float32 parameters that are 0 before it."""
    params = [Parameter(torch.zeros_like(g)) for g in stream[0]]
    optimizer = FusedRAdam(params, **options)
    for grads in stream:
        for p, g in zip(params, grads, strict=True):
            p.detach().zero_()
            p.grad = g
        optimizer.step()
        yield torch.cat([p.detach() for p in params]).clone()


def updates_to_nearest(
    stream: Sequence[Sequence[Tensor]], dtype: torch.dtype = torch.bfloat16
) -> Iterator[Tensor]:
    """The same with both moments rounded to the nearest number of a dtype."""
    arguments = RADAM.coefficient_arguments(RADAM.defaults)
    states = [
        {key: torch.zeros_like(g, dtype=dtype) for key in ("exp_avg", "exp_avg_sq")}
        for g in stream[0]
    ]
    for step, grads in enumerate(stream, 1):
        c = coefficients(step, **arguments)
        changed = [torch.zeros_like(g) for g in grads]
        for p, g, state in zip(changed, grads, states, strict=True):
            step_(p, g, state, c)
        yield torch.cat(changed)


def errors(stream: Sequence[Sequence[Tensor]]) -> dict[str, list[float]]:
    """The RMS of the difference to the float32 update over the RMS of that, at every step."""
    candidates = {
        STOCHASTIC: updates(stream, moments="bfloat16"),
        NEAREST: updates_to_nearest(stream),
    }
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for exact in updates(stream):
        for name, candidate in candidates.items():
            difference = next(candidate).double() - exact.double()
            found[name].append((difference.norm() / exact.double().norm()).item())
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """The mean and the range of numbers."""
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}


def measure(steps: int = STEPS) -> dict[str, Any]:
    """Train every format with every seed, and replay the gradients of a float32 run.

    Args:
        steps: Steps of each run. The errors of updates are those of the second half.
    """
    work = [(name, steps, seed) for name, seed in product(TRAINED, SEEDS)]
    losses = list(over_cores(train, work, "training"))
    by_name = {name: losses[i * len(SEEDS) :][: len(SEEDS)] for i, name in enumerate(TRAINED)}
    later = {name: summary(of[steps // 2 :]) for name, of in errors(gradients(steps)).items()}
    return {"learning_rate": LR, "steps": steps, "losses": by_name, "update_errors": later}


def loss_verdict(losses: dict[str, list[float]], name: str) -> str:
    """Whether training in a format ends where float32 does.

    Returns:
        "equal" if the means over the seeds differ by at most the spread of float32, which is its
        highest loss minus its lowest one; otherwise "better" or "worse".
    """
    difference = statistics.fmean(losses[name]) - statistics.fmean(losses[FLOAT32])
    if abs(difference) <= max(losses[FLOAT32]) - min(losses[FLOAT32]):
        return "equal"
    return "better" if difference < 0 else "worse"


def targets(quality: dict[str, Any]) -> list[dict[str, object]]:
    """The targets of accuracy, in the form of `tables.Target.check`."""
    error = quality["update_errors"][STOCHASTIC]
    checked: list[dict[str, object]] = [
        {
            "case": "recorded gradients",
            "against": f"update of {STOCHASTIC} to float32, relative RMS",
            "must be": f"<= {LARGEST_ERROR:.2f}",
            "is": round(error["mean"], 4),
            "spread": f"{error['lowest']:.3f} - {error['highest']:.3f}",
            "verdict": "reached" if error["mean"] <= LARGEST_ERROR else "missed",
        }
    ]
    losses = quality["losses"]
    wide = summary(losses[FLOAT32])
    for name in EQUAL:
        own = summary([loss - wide["mean"] for loss in losses[name]])
        is_reached = loss_verdict(losses, name) != "worse"
        checked.append(
            {
                "case": "transformer",
                "against": f"loss of {name} - {FLOAT32}",
                "must be": f"<= {wide['highest'] - wide['lowest']:.3f}",
                "is": round(own["mean"], 4),
                "spread": f"{own['lowest']:.3f} - {own['highest']:.3f}",
                "verdict": "reached" if is_reached else "missed",
            }
        )
    return checked
