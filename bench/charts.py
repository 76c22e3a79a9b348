"""Draws the results."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

from .bandwidth_limit import LIMIT
from .rivals import OURS
from .scaling import Scaling
from .tables import Results
from .timing import Timing

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {OURS: "tab:orange", LIMIT: "tab:gray"}


def digest(results: object) -> dict[str, str]:
    """Metadata that identifies the results in a picture."""
    return {"Source": hashlib.sha256(json.dumps(results).encode()).hexdigest()}


def draw(results: Results, path: Path) -> None:
    """Bars of the time per step, one panel per case."""
    down = math.ceil(len(results) / 2)
    figure, axes = pyplot.subplots(down, 2, figsize=(13, 3.6 * down), squeeze=False)
    for axis, (case, timings) in zip(axes.flat, results.items(), strict=False):
        ordered = sorted(timings.items(), key=lambda item: -item[1].median)
        names = [name for name, _ in ordered]
        medians = [t.median * 1e3 for _, t in ordered]
        spread = [
            [(t.median - t.lower_quartile) * 1e3 for _, t in ordered],
            [(t.upper_quartile - t.median) * 1e3 for _, t in ordered],
        ]
        axis.barh(names, medians, xerr=spread, color=[COLORS.get(n, "tab:blue") for n in names])
        for name, median, t in zip(names, medians, (t for _, t in ordered), strict=True):
            axis.text(t.upper_quartile * 1e3, name, f"  {median:.3g}", va="center")
        axis.set_title(case)
        axis.set_xlabel("ms per step (median, quartiles)")
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata=digest(results))


def _ms(timings: list[Timing], quantile: str) -> list[float]:
    return [getattr(timing, quantile) * 1e3 for timing in timings]


def draw_scaling(scaling: Scaling, path: Path) -> None:
    """Time per step over the numbers of each sweep: medians and quartiles."""
    figure, axes = pyplot.subplots(1, len(scaling), figsize=(5.5 * len(scaling), 4.5))
    for axis, (sweep, points) in zip(axes, scaling.items(), strict=True):
        numbers = [int(number) for number in points]
        names = list(dict.fromkeys(name for timings in points.values() for name in timings))
        for i, name in enumerate(names):
            timings = [of[name] for of in points.values()]
            style: dict[str, Any] = {"color": COLORS.get(name, f"C{2 * i}")}
            axis.loglog(numbers, _ms(timings, "median"), "o-", ms=3, label=name, **style)
            low, high = _ms(timings, "lower_quartile"), _ms(timings, "upper_quartile")
            axis.fill_between(numbers, low, high, alpha=0.2, **style)
        axis.set(xlabel=sweep, ylabel="ms per step")
        axis.set_xscale("log", base=2 if "threads" in sweep else 10)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata=digest(scaling))
