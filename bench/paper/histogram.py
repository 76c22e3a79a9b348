"""The distribution of the gradients in the first steps, per optimizer.

arXiv 1908.03265, section 3 and figures 2 and 3, claims that without warm-up Adam's gradients are
distorted within ten updates, and that warm-up, a second moment averaged beforehand (Adam-2k), a
large eps (Adam-eps) and rectification keep them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from radam_fused import FusedRAdam

from .page import markdown
from .training import TASKS, Recipe, adam, over_cores, steps_of

QUESTION = "How do the gradients change in the first updates?"
MINUTES = 13
SIZE = (10, 6.5)  # of the picture, inches

TASK = "bytes, 3.3M parameters"
RATES = [0.0005, 0.002, 0.01]
SEEDS = 3
FROZEN, WARM_UP = 100, 100
RECIPES = {
    "Adam": Recipe(adam),
    "Adam, warm-up over 100": Recipe(adam, warm_up=WARM_UP),
    "Adam-2k, k = 100": Recipe(adam, frozen=FROZEN),
    "Adam-eps, 1e-4": Recipe(partial(adam, eps=1e-4)),
    "RAdam": Recipe(FusedRAdam),
}

LOWEST, HIGHEST, BINS = -12.0, 0.0, 48


def _magnitudes(model: nn.Module) -> torch.Tensor:
    """log10 |g| of every nonzero gradient. Embeddings of bytes outside of the batch have zeros."""
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()]).abs()
    return gradients[gradients > 0].log10()


def _run(recipe: Recipe, lr: float, steps: int, seed: int) -> dict[str, Any]:
    """Losses and medians of |g| for every update; histograms for the first seed."""
    losses: list[float] = []
    histograms, medians = [], []
    for loss, model in steps_of(TASKS[TASK], recipe, lr, steps + recipe.frozen, seed):
        losses.append(loss)
        if recipe.frozen <= len(losses) - 1 < recipe.frozen + 100:
            magnitudes = _magnitudes(model)
            if seed == 0:
                shares = torch.histc(magnitudes, BINS, LOWEST, HIGHEST) / len(magnitudes)
                histograms.append([round(10_000 * x) for x in shares.tolist()])
            medians.append(magnitudes.median().item())
    return {"losses": losses[recipe.frozen :], "histograms": histograms, "medians": medians}


def measure(
    steps: int = 200,
    rates: Sequence[float] = RATES,
    names: Sequence[str] = tuple(RECIPES),
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        steps: Updates of each run.
        rates: Learning rates.
        names: Optimizers.
        seeds: Runs of each.
    """
    chosen = [(lr, name, seed) for lr in rates for name in names for seed in range(seeds)]
    arguments = [(RECIPES[name], lr, steps, seed) for lr, name, seed in chosen]
    runs: dict[str, dict[str, Any]] = {str(lr): {name: [] for name in names} for lr in rates}
    for (lr, name, _), run in zip(chosen, over_cores(_run, arguments, "runs"), strict=True):
        runs[str(lr)][name].append(run)
    settings = {
        "task": TASK,
        "steps": steps,
        "seeds": seeds,
        "log10 |g|, 1e-4": [LOWEST, HIGHEST, BINS],
    }
    return {"settings": settings, "runs": runs}


def shift(run: dict[str, Any], update: int) -> float:
    """The change of the median of log10 |g| since before the first update."""
    return float(run["medians"][update] - run["medians"][0])


def _range(values: list[float]) -> str:
    """Mean and range."""
    mean = sum(values) / len(values)
    return f"{mean:.3f} ({min(values):.3f}-{max(values):.3f})"


def table(results: dict[str, Any]) -> str:
    rows = []
    for lr, by_name in results["runs"].items():
        for i, (name, runs) in enumerate(by_name.items()):
            last = min(99, len(runs[0]["medians"]) - 1)
            values = (
                [10 ** shift(run, 10) for run in runs],
                [10 ** shift(run, last) for run in runs],
                [run["losses"][10] for run in runs],
                [sum(run["losses"][-20:]) / len(run["losses"][-20:]) for run in runs],
            )
            rows.append(["" if i else lr, name, *map(_range, values)])
    head = ["learning rate", "optimizer", "median \\|g\\| after 10 updates / before", "after 99"]
    head += ["loss after 10 updates", "of the last 20"]
    return markdown(rows, head)


def draw(results: dict[str, Any], figure: Any) -> None:
    """A row per learning rate, a column per optimizer; the losses have a picture of their own."""
    axes = figure.subplots(len(results["runs"]), len(RECIPES), squeeze=False, sharey=True)
    most = max(
        max(map(max, runs[0]["histograms"]))
        for by_name in results["runs"].values()
        for runs in by_name.values()
    )
    for row, (lr, by_name) in zip(axes, results["runs"].items(), strict=True):
        for axis, runs in zip(row, by_name.values(), strict=True):
            shares = torch.tensor(runs[0]["histograms"]).T.numpy() / 100  # per cent
            extent = (0, shares.shape[1], LOWEST, HIGHEST)
            image = axis.imshow(
                shares, aspect="auto", origin="lower", extent=extent, cmap="magma", vmax=most / 100
            )
            axis.grid(visible=False)
            axis.set(ylim=(-10, -1), yticks=[-10, -8, -6, -4, -2])
            axis.set_yticklabels(["1e-10", "1e-8", "1e-6", "1e-4", "0.01"])
        row[0].set_ylabel(f"learning rate {lr}\n|g|")
    for axis, name in zip(axes[0], RECIPES, strict=True):
        axis.set_title(name.replace(", ", ",\n"), fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("updates")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01)
    bar.set_label("gradients in a bin of a quarter\nof a power of ten, %")
