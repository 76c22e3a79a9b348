"""Draws the results of the benchmark."""

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from radam_fused.benchmark.timing import Timing

from .bandwidth_limit import LIMIT
from .rivals import ADAMW, OURS
from .scaling import Scaling
from .style import color, grid_of, legend, plain, save
from .tables import Results, fastest_first

HEADLINE = "GPT-2 124M"


def _short(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _bars(axis: Any, timings: dict[str, Timing]) -> None:
    """Bars of the medians, with the quartiles, the fastest on top."""
    for name, t in reversed(fastest_first(timings).items()):
        spread = [[(t.median - t.lower_quartile) * 1e3], [(t.upper_quartile - t.median) * 1e3]]
        error = {"ecolor": "#303030", "elinewidth": 1}
        axis.barh(name, t.median * 1e3, xerr=spread, color=color(name), error_kw=error, height=0.7)
        axis.text(t.upper_quartile * 1.08e3, name, f"{_short(t.median * 1e3)} ms", va="center")
    axis.set(xscale="log", xlabel="ms per step, log scale")
    axis.grid(axis="y", visible=False)
    low = min(t.lower_quartile for t in timings.values()) * 1e3
    axis.set_xlim(low / 2, max(t.upper_quartile for t in timings.values()) * 2.5e3)
    plain(axis)


def draw(results: Results, path: Path) -> None:
    """The time of a step, one panel per case."""
    figure = pyplot.figure(figsize=(10, 3.1 * -(-len(results) // 2)), layout="constrained")
    for axis, (case, timings) in zip(
        grid_of(figure, len(results), 2), results.items(), strict=True
    ):
        _bars(axis, timings)
        axis.set_title(f"{case}: median and quartiles")
    save(figure, path, results)


def draw_headline(timings: dict[str, Timing], path: Path) -> None:
    """The time of a step of GPT-2 124M, for the README."""
    shown = {name: t for name, t in timings.items() if name not in (ADAMW, "torch Adam")}
    figure = pyplot.figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    _bars(axis, shown)
    axis.set_title(f"{HEADLINE}, float32: time of a step on two cores")
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")
    save(figure, path, timings)


def _ms(timings: list[Timing], quantile: str) -> list[float]:
    return [getattr(timing, quantile) * 1e3 for timing in timings]


# Titles and x axes of the sweeps.
SWEEPS = {
    "parameters of one tensor": ("One tensor grows", "parameters"),
    "tensors of 4,194,304 parameters": (
        "The same total in more tensors",
        "tensors, which together have 4,194,304 parameters",
    ),
    "threads on one tensor of 25,000,000": ("One tensor of 25M, more threads", "threads"),
}


def draw_scaling(scaling: Scaling, path: Path) -> None:
    """Time per step over the numbers of each sweep: medians and quartiles."""
    figure = pyplot.figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, len(scaling))
    for axis, (sweep, points) in zip(axes, scaling.items(), strict=True):
        numbers = [int(number) for number in points]
        for name in dict.fromkeys(name for timings in points.values() for name in timings):
            timings = [of[name] for of in points.values()]
            median, low, high = (
                _ms(timings, q) for q in ("median", "lower_quartile", "upper_quartile")
            )
            line = "--" if name == LIMIT else "-"
            axis.loglog(numbers, median, line, marker="o", ms=3, color=color(name), label=name)
            axis.fill_between(numbers, low, high, alpha=0.2, color=color(name), lw=0)
        title, label = SWEEPS[sweep]
        axis.set(title=title, xlabel=label, ylabel="ms per step (the whole step)")
        if "threads" in sweep:
            axis.set_xscale("log", base=2)
        plain(axis)
    legend(figure, axes)
    save(figure, path, scaling)
