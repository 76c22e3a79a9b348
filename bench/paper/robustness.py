"""The scores of optimizers over two orders of magnitude of learning rates.

arXiv 1908.03265, section 5.2 and figures 5 and 6, claims that RAdam does as well over a wide range
of learning rates, that Adam and SGD do not, and that Adam with warm-up depends on its length.

At the usual beta2, r_t acts like a warm-up over 2,000 steps, which is longer than a run. The
results therefore also show the mean factor of the learning rate, and a warm-up over 2,000 steps.
"""

import math
import statistics
from functools import partial
from typing import Any

import torch

from bench.style import color, legend, plain
from radam_fused import FusedRAdam

from .page import markdown
from .training import Outcome, Recipe, adam, over_cores, train

QUESTION = "At which learning rates does an optimizer keep its score?"
MINUTES = 8
SIZE = (11, 8.5)  # of the picture, inches

RATES = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]
RECIPES = {
    "SGD, momentum 0.9": Recipe(partial(torch.optim.SGD, momentum=0.9)),
    "Adam": Recipe(adam),
    "Adam, warm-up over 20": Recipe(adam, warm_up=20),
    "Adam, warm-up over 100": Recipe(adam, warm_up=100),
    "Adam, warm-up over 2,000": Recipe(adam, warm_up=2000),
    "RAdam": Recipe(FusedRAdam),
}
SEEDS = {"digits": 5, "bytes": 3}
SCORES = {"digits": "accuracy, held out", "bytes": "loss, held out, nats per byte"}
LIMITS = {"digits": (0.85, 1.0), "bytes": (2.3, 3.5)}  # of the axes
WITHIN = {"digits": 0.01, "bytes": 0.1}  # a score so near to the best one counts as kept
CURVE_RATE = 0.03  # for the loss curves
EVERY = 10  # steps per point of a curve


def _curve(losses: list[float], steps: int) -> list[float | None]:
    """Means over EVERY steps; None after the run stopped early."""
    means = [statistics.fmean(losses[i : i + EVERY]) for i in range(0, steps, EVERY) if losses[i:]]
    padded = [*means, *[math.nan] * (steps // EVERY - len(means))]
    return [round(x, 4) if math.isfinite(x) else None for x in padded]


def train_all(
    recipes: dict[str, Recipe], rates: list[float], seeds: dict[str, int], steps: int
) -> dict[str, Any]:
    """Train every task with every recipe at every rate.

    Args:
        recipes: The optimizers.
        rates: Learning rates.
        seeds: Number of seeds for each task.
        steps: Of every run.

    Returns:
        Task to optimizer to learning rate: scores (None where not finite) and curves of the loss,
        one a seed.
    """
    found: dict[str, Any] = {}
    for task, count in seeds.items():
        cells = [(name, lr, seed) for name in recipes for lr in rates for seed in range(count)]
        arguments = [(task, recipes[name], lr, steps, seed) for name, lr, seed in cells]
        by_name = found[task] = {
            name: {str(lr): {"scores": [], "curves": []} for lr in rates} for name in recipes
        }
        outcomes = over_cores(train, arguments, task)
        for (name, lr, _), outcome in zip(cells, outcomes, strict=True):
            assert isinstance(outcome, Outcome)
            cell = by_name[name][str(lr)]
            cell["scores"].append(outcome.score if math.isfinite(outcome.score) else None)
            cell["curves"].append(_curve(outcome.losses, steps))
    return found


def measure(
    steps: int = 300,
    seeds: dict[str, int] | None = None,
    rates: list[float] | None = None,
    recipes: dict[str, Recipe] | None = None,
) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        steps: Of every run.
        seeds: Number of seeds for each task.
        rates: Learning rates.
        recipes: Optimizers.
    """
    seeds, rates, recipes = seeds or SEEDS, rates or RATES, recipes or RECIPES
    return {
        "settings": {"steps": steps, "seeds": seeds, "rates": rates},
        "mean factor": {name: recipe.mean_factor(steps) for name, recipe in recipes.items()},
        "scores": train_all(recipes, rates, seeds, steps),
    }


def _finite(cell: dict[str, Any]) -> list[float]:
    return [x for x in cell["scores"] if x is not None]


def median_of(cell: dict[str, Any], task: str) -> float:
    """The scores of all seeds; a run that stopped early has the worst score."""
    worst = 0.0 if task == "digits" else math.inf
    return statistics.median(worst if x is None else x for x in cell["scores"])


def _best(medians: list[float], task: str) -> float:
    return max(medians) if task == "digits" else min(medians)


def scores_table(scores: dict[str, Any], factors: dict[str, float]) -> str:
    """Median and range over the seeds, one table per task.

    Args:
        scores: As train_all() returns them.
        factors: Mean factor on the learning rate by optimizer.
    """
    tables = []
    for task, by_name in scores.items():
        medians = {
            name: [median_of(cell, task) for cell in by_rate.values()]
            for name, by_rate in by_name.items()
        }
        best = _best([_best(of, task) for of in medians.values()], task)
        rows = []
        for name, by_rate in by_name.items():
            row = [name, f"{factors[name]:.2f}"]
            for median, cell in zip(medians[name], by_rate.values(), strict=True):
                finite = _finite(cell)
                spread = f" ({min(finite):.3f}-{max(finite):.3f})" if finite else ""
                row.append(f"{median:.3f}{spread}")
            own = _best(medians[name], task)
            near = (sum(abs(x - of) <= WITHIN[task] for x in medians[name]) for of in (best, own))
            rows.append([*row, *(f"{count} of {len(by_rate)}" for count in near)])
        rates = next(iter(by_name.values()))
        head = [f"{task}: {SCORES[task]}", "mean factor", *(f"lr {rate}" for rate in rates)]
        head += [f"within {WITHIN[task]} of the best", "of its own best"]
        tables.append(markdown(rows, head))
    return "\n\n".join(tables)


def table(results: dict[str, Any]) -> str:
    return scores_table(results["scores"], results["mean factor"])


def _draw_scores(axis: Any, task: str, name: str, by_name: dict[str, Any]) -> None:
    """The score of one optimizer by learning rate: median and range; grey: the others."""
    for other, by_rate in by_name.items():
        rates = [float(lr) for lr in by_rate]
        medians = [median_of(cell, task) for cell in by_rate.values()]
        style = {"color": color(name), "marker": "o", "ms": 3, "zorder": 3}
        axis.plot(rates, medians, **(style if other == name else {"color": "#d0d0d0", "lw": 0.8}))
    ends = [_finite(cell) or [math.nan] for cell in by_name[name].values()]
    low, high = [min(of) for of in ends], [max(of) for of in ends]
    axis.fill_between(rates, low, high, color=color(name), alpha=0.2, lw=0)
    axis.set(xscale="log", ylim=LIMITS[task], xticks=[0.001, 0.01, 0.1])
    plain(axis)


def _draw_effective(axis: Any, task: str, results: dict[str, Any]) -> None:
    """Every score over the learning rate times the mean factor of the optimizer."""
    for name, by_rate in results["scores"][task].items():
        rates = [float(lr) * results["mean factor"][name] for lr in by_rate]
        medians = [median_of(cell, task) for cell in by_rate.values()]
        axis.plot(rates, medians, marker="o", ms=3, color=color(name), label=name)
    axis.set(xscale="log", xlabel="learning rate x mean factor", ylim=LIMITS[task])
    axis.set(title=task, ylabel=SCORES[task])
    plain(axis)


def draw(results: dict[str, Any], figure: Any) -> None:
    """A row per task with a panel per optimizer; then all over the effective learning rate."""
    names, tasks = list(results["mean factor"]), list(results["scores"])
    single, together = figure.subfigures(2, 1, height_ratios=[len(tasks), 1.4])
    axes = single.subplots(len(tasks), len(names), squeeze=False, sharey="row")
    for row, task in zip(axes, tasks, strict=True):
        for axis, name in zip(row, names, strict=True):
            _draw_scores(axis, task, name, results["scores"][task])
        row[0].set_ylabel(f"{task}:\n{SCORES[task]}")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name.replace(", ", ",\n"), color=color(name))
    for axis in axes[-1]:
        axis.set_xlabel("learning rate")
    below = together.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(below, tasks, strict=True):
        _draw_effective(axis, task, results)
    legend(together, below, columns=3)
