"""What is made of the timings: the tables and the targets."""

from tabulate import tabulate

from .cases import MANY, Shapes, elements
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


def case_table(
    case: str, timings: dict[str, Timing], shapes: Shapes, tablefmt: str = "simple"
) -> str:
    """One line a rival, the fastest first."""
    size, fastest = elements(shapes) * BYTES / 1e9, timings[LIMIT].median
    rows = [
        [
            name,
            f"{t.median * 1e3:.4g}",
            f"{t.lower_quartile * 1e3:.4g} - {t.upper_quartile * 1e3:.4g}",
            f"{size / t.median:.1f}",
            f"{fastest / t.median:.3f}",
            f"{timings[OURS].median / t.median:.3f}",
        ]
        for name, t in sorted(timings.items(), key=lambda item: item[1].median)
    ]
    head = [case, "ms", "quartiles", "GB/s", "of the limit", "ours / this"]
    return tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True)


def flat_table(case: str, timings: dict[str, Timing], tablefmt: str = "simple") -> str:
    """One line a way to hold the tensors."""
    rows = [
        [
            name,
            f"{t.median * 1e3:.2f}",
            f"{t.lower_quartile * 1e3:.2f} - {t.upper_quartile * 1e3:.2f}",
        ]
        for name, t in timings.items()
    ]
    return tabulate(rows, [case, "ms", "quartiles"], tablefmt=tablefmt, disable_numparse=True)


def scaling_table(
    sweep: str, points: dict[str, dict[str, Timing]], tablefmt: str = "simple"
) -> str:
    """One line a number of the sweep, medians in ms."""
    names = list(next(iter(points.values())))
    rows = [
        [
            f"{int(number):,}",
            *(f"{timings[name].median * 1e3:.4g}" for name in names),
            *(f"{timings[OURS].median / timings[name].median:.3f}" for name in names[1:]),
        ]
        for number, timings in points.items()
    ]
    head = [sweep, *(f"{name}, ms" for name in names), *(f"ours / {name}" for name in names[1:])]
    return tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True)


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


def targets_table(checked: list[dict[str, object]], tablefmt: str = "simple") -> str:
    return tabulate(checked, headers="keys", floatfmt=".3f", tablefmt=tablefmt)
