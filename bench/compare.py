"""What has become slower or faster between two files of results."""

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from .limit import LIMIT
from .timing import Timing, timings

Record = dict[str, Any]


def _cases(record: Record) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Every case of every section with its timings."""
    sections = {**record["seconds"], **record["seconds_flat"]}
    for sweep, points in record.get("seconds_scaling", {}).items():
        sections |= {f"{number} {sweep}": section for number, section in points.items()}
    for case, section in sections.items():
        yield case, timings(section)


def _verdict(old: Timing, new: Timing, scale: float = 1.0) -> str:
    """Beyond the spread: the ranges between the quartiles, the new one's scaled, part."""
    if new.lower_quartile * scale > old.upper_quartile:
        return "slower"
    return "faster" if new.upper_quartile * scale < old.lower_quartile else ""


def _row(old: Timing, new: Timing, limits: list[Timing]) -> list[str]:
    """In ms, and of the limit's time where both have it, as a machine differs with the day."""
    ratio = new.median / old.median
    row = [f"{old.median * 1e3:.4g}", f"{new.median * 1e3:.4g}", f"{ratio:.3f}", _verdict(old, new)]
    if len(limits) < 2:
        return [*row, "", ""]
    scale = limits[0].median / limits[1].median
    return [*row, f"{ratio * scale:.3f}", _verdict(old, new, scale)]


def _machines(before: Record, after: Record) -> Iterator[str]:
    for what in before["machine"]:
        was, now = before["machine"][what], after["machine"].get(what)
        if was != now:
            yield f"{what}: {was} before, {now} after"


def compare(before: Record, after: Record) -> str:
    """Where the two were measured if that differs, and a table of what left its spread.

    Args:
        before: Results as bench/results/cpu.json holds them.
        after: Others.
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
