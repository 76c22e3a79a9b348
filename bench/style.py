"""The style of every picture: one colour for each optimizer, plain numbers, legends outside."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

# Okabe and Ito's colours, which readers with colour blindness can tell apart, and greys.
_OURS, _BLUE, _GREEN, _PINK, _SKY, _AMBER = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)
COLORS = {
    "FusedRAdam": _OURS,
    "RAdam": _OURS,
    "RAdam, amsgrad": "#f0a070",
    "torch RAdam": _BLUE,
    "torch AdamW fused": _GREEN,
    "FusedAdamW": "#f0a070",
    "Adam": "#404040",
    "torch Adam": "#404040",
    "AMSGrad": "#7b5ea7",
    "torch RAdam foreach": _SKY,
    "torch.compile of RAdam": _PINK,
    "optimi RAdam": _AMBER,
    "limit: read 4, write 3": "#a0a0a0",
    "SGD, momentum 0.9": "#a0a0a0",
    "Adam, warm-up over 20": "#9fd5c3",
    "Adam, warm-up over 100": _GREEN,
    "Adam, warm-up over 2,000": "#00543d",
}
LINES = ["-", "--", ":", "-."]

pyplot.rcParams.update(
    {
        "axes.edgecolor": "#606060",
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "figure.dpi": 100,
        "font.size": 9,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
        "savefig.dpi": 120,
    }
)


def color(name: str) -> str:
    """The colour of an optimizer on every picture."""
    return COLORS.get(name, "#808080")


def shades(count: int) -> list[Any]:
    """Colours for the values of a number such as beta2, from dark to light."""
    return [pyplot.get_cmap("viridis")(0.9 * i / max(1, count - 1)) for i in range(count)]


def _number(value: float, _: object = None) -> str:
    """A number of a log axis: 0.001, 1,000, and powers beyond."""
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.10g}"
    digit, _, power = f"{value:.0e}".partition("e")
    return rf"${digit}\times 10^{{{int(power)}}}$".replace(r"1\times ", "")


def plain(*axes: Any) -> None:
    """Label the log axes among these axes with plain numbers."""
    for axis in axes:
        for side in (axis.xaxis, axis.yaxis):
            if side.get_scale() != "linear":
                low, high = sorted(side.get_view_interval())
                if low > 0 and high / low < 30 and side.get_transform().base == 10:
                    # One power of ten has too few numbers.
                    side.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                elif side is axis.xaxis and 0 < low < high / 3e3 and high > 5e4:
                    # Long numbers side by side.
                    side.set_major_locator(ticker.LogLocator(base=100, numticks=9))
                side.set_major_formatter(ticker.FuncFormatter(_number))
                side.set_minor_formatter(ticker.NullFormatter())


def legend(figure: Any, axes: Iterable[Any], columns: int = 4, **options: Any) -> None:
    """One legend of all labelled lines, below the axes."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    where = {"loc": "outside lower center", **options}
    figure.legend(found.values(), found.keys(), ncols=columns, **where)


def grid_of(figure: Any, count: int, columns: int, **options: Any) -> Sequence[Any]:
    """Axes in rows for small multiples; those that are not needed are removed."""
    axes = figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]  # type: ignore[no-any-return]


def save(figure: Any, path: Path, results: object) -> None:
    """Write a picture that carries the hash of the results that it shows."""
    figure.savefig(path, metadata=digest(results))
    pyplot.close(figure)


def digest(results: object) -> dict[str, str]:
    """Metadata that identifies the results in a picture."""
    return {"Source": hashlib.sha256(json.dumps(results).encode()).hexdigest()}
