"""Compares two files of results: what became slower or faster."""

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from radam_fused.benchmark.timing import Timing, timings

from .bandwidth_limit import LIMIT

Record = dict[str, Any]


def _cases(record: Record) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Every case of every section, with its timings."""
    sections = {**record["seconds"], **record["seconds_flat"]}
    for sweep, points in record.get("seconds_scaling", {}).items():
        sections |= {f"{number} {sweep}": section for number, section in points.items()}
    for case, section in sections.items():
        yield case, timings(section)


def _change(old: Timing, new: Timing, scale: float = 1.0) -> str:
    """slower or faster if the ranges between the quartiles do not overlap, else nothing."""
    if new.lower_quartile * scale > old.upper_quartile:
        return "slower"
    return "faster" if new.upper_quartile * scale < old.lower_quartile else ""


def _row(old: Timing, new: Timing, limits: list[Timing]) -> list[str]:
    """Times in ms; also relative to the limit, because a machine's speed varies between days."""
    ratio = new.median / old.median
    row = [f"{old.median * 1e3:.4g}", f"{new.median * 1e3:.4g}", f"{ratio:.3f}", _change(old, new)]
    if len(limits) < 2:
        return [*row, "", ""]
    scale = limits[0].median / limits[1].median
    return [*row, f"{ratio * scale:.3f}", _change(old, new, scale)]


def _machines(before: Record, after: Record) -> Iterator[str]:
    for what in before["machine"]:
        was, now = before["machine"][what], after["machine"].get(what)
        if was != now:
            yield f"{what}: {was} before, {now} after"


def compare(before: Record, after: Record) -> str:
    """Differences of the machines, and a table of the changes outside the quartiles.

    Args:
        before: A record in the form of bench/results/cpu.json.
        after: Another one.
    """
    earlier, later = dict(_cases(before)), dict(_cases(after))
    rows, same = [], 0
    for case in {**later, **earlier}:
        olds, news = earlier.get(case, {}), later.get(case, {})
        limits = [of[LIMIT] for of in (olds, news) if LIMIT in of]
        for name in {**news, **olds}:
            if name not in news:
                rows.append([case, name, f"{olds[name].median * 1e3:.4g}", "", "", "gone", "", ""])
            elif name not in olds:
                rows.append([case, name, "", f"{news[name].median * 1e3:.4g}", "", "new", "", ""])
            else:
                row = _row(olds[name], news[name], [] if name == LIMIT else limits)
                if row[3] or row[5]:
                    rows.append([case, name, *row])
                else:
                    same += 1
    head = ["case", "what", "ms before", "after", "after / before", "", "of the limit", ""]
    table = tabulate(rows, head, disable_numparse=True)
    return "\n".join([*_machines(before, after), table, f"{same} within the spread"])
