"""Times several steps against each other: interleaved in one process, medians and quartiles.

A clock is a function that takes a step and returns a timer; each call of the timer runs the step
once and returns its seconds.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

WARM_UP = 8  # steps: past the threshold, compiled, memory allocated

Step = Callable[[], object]
Timer = Callable[[], float]
Clock = Callable[[Step], Timer]

_CYCLES = 2e9  # of torch.cuda._sleep; about one second


class Timing(NamedTuple):
    """Seconds per step."""

    lower_quartile: float
    median: float
    upper_quartile: float


def verdict(ours: Timing, other: Timing) -> str:
    """How our time compares with another one.

    Returns:
        "level" where the ranges between the quartiles overlap or the medians differ by less than
        1 %, otherwise "2.5 x faster" or "2.5 x slower": the ratio of the medians.
    """
    overlap = (
        ours.lower_quartile <= other.upper_quartile and other.lower_quartile <= ours.upper_quartile
    )
    ratio = ours.median / other.median
    if overlap or abs(ratio - 1) < 0.01:
        return "level"
    return f"{_factor(1 / ratio)} x faster" if ratio < 1 else f"{_factor(ratio)} x slower"


def _factor(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1.995 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def timings(section: Mapping[str, Mapping[str, float]]) -> dict[str, Timing]:
    """The timings of a case in a record."""
    return {name: Timing(**timing) for name, timing in section.items()}


def wall_clock(step: Step) -> Timer:
    """The time of a step on the CPU, which returns when its work is done."""

    def timer() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return timer


def enqueue_clock(step: Step) -> Timer:
    """The time until a step on a GPU returns; the device is idle before, so no queue fills up."""
    wall = wall_clock(step)

    def timer() -> float:
        torch.cuda.synchronize()
        return wall()

    return timer


def device_clock(step: Step) -> Timer:
    """The time of a step on a GPU, between two events.

    A kernel that sleeps keeps the device busy until the host has enqueued the whole step.
    """
    enqueue = enqueue_clock(step)
    busy = 2 * min(enqueue() for _ in range(3)) + 1e-4

    def timer() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(int(busy * _CYCLES))  # type: ignore[no-untyped-call]
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return timer


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    title: str,
    clock: Clock = wall_clock,
    warm_up: int = WARM_UP,
) -> dict[str, Timing]:
    """Time every step once per round.

    Args:
        steps: The steps.
        rounds: Number of rounds, at least 2.
        title: What the progress bar shows.
        clock: The clock.
        warm_up: Untimed steps of each before the first round.

    Returns:
        The timing of each step.
    """
    from tqdm import tqdm

    for step in steps.values():
        for _ in range(warm_up):
            step()
    timers = {name: clock(step) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(rounds), desc=title, leave=False, mininterval=1):
        for name, timer in timers.items():
            seconds[name].append(timer())
    return {name: Timing(*statistics.quantiles(values, n=4)) for name, values in seconds.items()}
