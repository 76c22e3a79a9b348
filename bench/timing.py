"""Timing several steps against each other: interleaved in one process, medians and quartiles."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tqdm import tqdm

WARM_UP = 8  # past the threshold, compiled, allocated


class Timing(NamedTuple):
    """Seconds of one step."""

    lower_quartile: float
    median: float
    upper_quartile: float


def timings(section: Mapping[str, Mapping[str, float]]) -> dict[str, Timing]:
    """Those of a case as a record holds them."""
    return {name: Timing(**timing) for name, timing in section.items()}


def interleave(
    steps: Mapping[str, Callable[[], object]], rounds: int, what: str
) -> dict[str, Timing]:
    """Time each step once a round, all of them in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    for _ in tqdm(range(rounds), desc=what, leave=False, mininterval=1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(*statistics.quantiles(values, n=4)) for name, values in seconds.items()}
