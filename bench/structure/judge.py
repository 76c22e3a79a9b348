"""Computes the ratio of two subjects timed in pairs, and compares it with its target."""

import statistics
from collections.abc import Sequence
from typing import Any


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4)


def _joined(batches: Sequence[Sequence[float]]) -> list[float]:
    return [value for batch in batches for value in batch]


def judge(
    numerator: Sequence[Sequence[float]],
    denominator: Sequence[Sequence[float]],
    target: float | None,
) -> dict[str, Any]:
    """Compare the seconds of two subjects, given one list per batch of pairs.

    The n-th of one list and the n-th of the other are a pair. The median of the ratios of all pairs
    is judged: what slows both of a pair does not change it.

    Args:
        numerator: The seconds of the one.
        denominator: The seconds of the other.
        target: The largest ratio, or None.
    """
    batches = [
        [a / b for a, b in zip(above, below, strict=True)]
        for above, below in zip(numerator, denominator, strict=True)
    ]
    ratios, upper, lower = map(quartiles, map(_joined, (batches, numerator, denominator)))
    return {
        "pairs": sum(map(len, batches)),
        "median_ratio": ratios[1],
        "median_ratio_of_each_batch": [statistics.median(batch) for batch in batches],
        "ratio_quartiles": [ratios[0], ratios[2]],
        "ratio_of_medians": upper[1] / lower[1],
        "numerator_ms": [1e3 * seconds for seconds in upper],
        "denominator_ms": [1e3 * seconds for seconds in lower],
        "target": target,
        "reached": None if target is None else ratios[1] <= target,
    }


def judge_count(count: int, target: int | None) -> dict[str, Any]:
    """Compare a number of calls or files with its target."""
    return {
        "count": count,
        "target": target,
        "reached": None if target is None else count <= target,
    }
