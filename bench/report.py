"""What is made of the timings: the table, the targets, the chart."""

import math
from pathlib import Path

from tabulate import tabulate

from .cases import CASES, MANY, elements
from .flat import AS_ONE, FLAT, READING
from .limit import LIMIT
from .rivals import OURS
from .timing import Timing

Results = dict[str, dict[str, Timing]]

BYTES = 28  # of float32 an element: four arrays read, three written

# Case, rival, and the largest share of its time that ours may take; against the limit, the least
# share of its bandwidth that ours must reach.
TARGETS = [
    ("GPT-2 124M", "torch AdamW fused", 1.00),
    ("GPT-2 124M", "torch RAdam", 0.25),
    ("GPT-2 124M", "torch.compile of RAdam", 0.60),
    ("GPT-2 124M", LIMIT, 0.93),
    ("one 25M tensor", "torch AdamW fused", 1.00),
    ("one 25M tensor", LIMIT, 0.95),
    (MANY, "torch AdamW fused", 0.20),
    (MANY, "torch RAdam", 0.06),
]


def case_table(case: str, timings: dict[str, Timing]) -> str:
    """One line a rival, the fastest first."""
    size, fastest = elements(CASES[case]) * BYTES / 1e9, timings[LIMIT].median
    rows = [
        [
            name,
            f"{t.median * 1e3:.2f}",
            f"{t.lower_quartile * 1e3:.2f} - {t.upper_quartile * 1e3:.2f}",
            f"{size / t.median:.1f}",
            f"{fastest / t.median:.3f}",
            f"{timings[OURS].median / t.median:.3f}",
        ]
        for name, t in sorted(timings.items(), key=lambda item: item[1].median)
    ]
    head = [case, "ms", "quartiles", "GB/s", "of the limit", "ours / this"]
    return tabulate(rows, head, disable_numparse=True)


def flat_table(case: str, timings: dict[str, Timing]) -> str:
    """One line a way to hold the tensors."""
    rows = [
        [
            name,
            f"{t.median * 1e3:.2f}",
            f"{t.lower_quartile * 1e3:.2f} - {t.upper_quartile * 1e3:.2f}",
        ]
        for name, t in timings.items()
    ]
    return tabulate(rows, [case, "ms", "quartiles"], disable_numparse=True)


def flat_target(timings: dict[str, Timing]) -> dict[str, object]:
    """A flat step against one tensor's and the reading of the gradients' addresses."""
    ratio = timings[FLAT].median / (timings[AS_ONE].median + timings[READING].median)
    return {
        "case": f"{MANY}, flatten=True",
        "against": "one tensor and reading the addresses",
        "must be": "<= 1.00",
        "is": round(ratio, 4),
        "reached": ratio <= 1.0,
    }


def targets(results: Results) -> list[dict[str, object]]:
    """Each target with the figure reached."""
    checked = []
    for case, rival, bound in TARGETS:
        ratio = results[case][OURS].median / results[case][rival].median
        figure, sign = (1 / ratio, ">=") if rival == LIMIT else (ratio, "<=")
        reached = figure >= bound if rival == LIMIT else figure <= bound
        checked.append(
            {
                "case": case,
                "against": rival,
                "must be": f"{sign} {bound:.2f}",
                "is": round(figure, 4),
                "reached": reached,
            }
        )
    return checked


def targets_table(checked: list[dict[str, object]]) -> str:
    return tabulate(checked, headers="keys", floatfmt=".3f")


def draw(results: Results, path: Path) -> None:
    """Bars of the time of a step, one panel a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = {OURS: "tab:orange", LIMIT: "tab:gray"}
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
        axis.barh(names, medians, xerr=spread, color=[colors.get(n, "tab:blue") for n in names])
        for name, median, t in zip(names, medians, (t for _, t in ordered), strict=True):
            axis.text(t.upper_quartile * 1e3, name, f"  {median:.3g}", va="center")
        axis.set_title(case)
        axis.set_xlabel("ms a step (median, quartiles)")
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
