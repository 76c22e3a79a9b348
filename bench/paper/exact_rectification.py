"""Rectification with the exact variance, compared with its first-order approximation.

The approximation is 3.3 times too high at rho = 5, so r_t is too small in the first rectified
steps. Runs with the same seed share their weights and batches, so they are compared pair by pair.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.style import LINES, legend, plain, shades
from radam_fused import FusedRAdam
from radam_fused.rectification import rectification

from .grid import logarithmic
from .page import markdown
from .robustness import LIMITS, RATES, SCORES, SEEDS, median_of, scores_table, train_all
from .training import Recipe

QUESTION = "What is the benefit of the exact variance?"
MINUTES = 4
SIZE = (10, 3.8)  # of the picture, inches

EXACT, EARLY = "exact", "exact, rho_t > 2"
OPTIONS: dict[str, dict[str, Any]] = {
    "first order": {},
    EXACT: {"exact_rectification": True},
    EARLY: {"exact_rectification": True, "rectify_threshold": 2.0},
}
RECIPES = {name: Recipe(partial(FusedRAdam, **options)) for name, options in OPTIONS.items()}
BETA2 = [0.9, 0.99, 0.999, 0.9999]
SHOWN = [3, 4, 5, 6, 7, 8, 10, 20, 50, 100, 1000]
TIMES = sorted(logarithmic(10_000, 20).union(SHOWN))


def _r(t: int, beta2: float, how: str) -> float:
    options = OPTIONS[how]
    threshold = options.get("rectify_threshold", 5.0)
    return rectification(t, beta2, threshold, options.get("exact_rectification", False))


def measure(
    steps: int = 300, seeds: dict[str, int] | None = None, rates: list[float] | None = None
) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        steps: Of every run.
        seeds: Number of seeds for each task.
        rates: Learning rates.
    """
    seeds, rates = seeds or SEEDS, rates or RATES
    return {
        "settings": {"steps": steps, "seeds": seeds, "rates": rates},
        "r": {
            str(beta2): {how: [_r(t, beta2, how) for t in TIMES] for how in OPTIONS}
            for beta2 in BETA2
        },
        "t": TIMES,
        "mean factor": {name: recipe.mean_factor(steps) for name, recipe in RECIPES.items()},
        "scores": train_all(RECIPES, rates, seeds, steps),
    }


def table(results: dict[str, Any]) -> str:
    r = results["r"]["0.999"]
    rows = []
    for t in SHOWN:
        first, exact, early = (r[how][results["t"].index(t)] for how in OPTIONS)
        ratio = f"{exact / first:.3f}" if first else ""
        rows.append([t, f"{first:.4f}", f"{exact:.4f}", f"{early:.4f}", ratio])
    head = ["t, at beta2 = 0.999", *OPTIONS, "exact / first order"]
    by_step = markdown(rows, head)
    scores = scores_table(results["scores"], results["mean factor"])
    return "\n\n".join([by_step, scores, *_pairs(results["scores"])])


def _pairs(scores: dict[str, Any]) -> Iterator[str]:
    """The score with the exact variance minus the score with the first order, per seed."""
    for task, by_name in scores.items():
        first = by_name["first order"]
        rows = []
        for how in (EXACT, EARLY):
            row = [how]
            for rate, cell in by_name[how].items():
                pairs = zip(cell["scores"], first[rate]["scores"], strict=True)
                gains = [a - b for a, b in pairs if a is not None and b is not None]
                better = sum(gain > 0 if task == "digits" else gain < 0 for gain in gains)
                mean = sum(gains) / len(gains) if gains else math.nan
                row.append(f"{mean:+.4f}, better in {better} of {len(cell['scores'])}")
            rows.append(row)
        head = [f"{task}: difference to first order, mean", *(f"lr {rate}" for rate in first)]
        yield markdown(rows, head)


def draw(results: dict[str, Any], figure: Any) -> None:
    left, *others = figure.subplots(1, 1 + len(results["scores"]))
    for shade, (beta2, curves) in zip(shades(len(BETA2)), results["r"].items(), strict=True):
        for (_, values), style in zip(curves.items(), LINES, strict=False):
            left.loglog(results["t"], values, style, color=shade)
        middle = next(i for i, value in enumerate(values) if value > 0.25)
        left.annotate(f" {beta2}", (results["t"][middle], 0.23), color=shade, va="top")
    left.set(xlabel="step t", ylabel="r_t", title="r_t by beta2 (numbers at the lines)")
    left.set_ylim(5e-3, 2)
    plain(left)
    for axis, (task, by_name) in zip(others, results["scores"].items(), strict=True):
        for (name, by_rate), style in zip(by_name.items(), LINES, strict=False):
            wide = {"lw": 4, "alpha": 0.35} if style == "-" else {}  # seen below the others
            rates = [float(lr) for lr in by_rate]
            medians = [median_of(cell, task) for cell in by_rate.values()]
            axis.plot(rates, medians, style, color="#303030", label=name, **wide)
        axis.set(xscale="log", xlabel="learning rate", ylabel=SCORES[task], title=task)
        axis.set_ylim(*LIMITS[task])
        plain(axis)
    legend(figure, others)
