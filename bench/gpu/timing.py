"""Device and host time of steps taken in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ..timing import WARM_UP, Timing

CYCLES = 2e9  # a second, about


class GpuTiming(NamedTuple):
    """Seconds of one step: on the device, and on the host until the call returns."""

    device: Timing
    host: Timing


def _once(step: Callable[[], object], busy: float) -> tuple[float, float]:
    """Device and host seconds; the device is kept busy until the host has enqueued the step."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(busy * CYCLES))
    start.record()
    before = time.perf_counter()
    step()
    host = time.perf_counter() - before
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, host


def interleave(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, GpuTiming]:
    """Time each step once a round, all of them in every round."""
    busy = {}
    for name, step in steps.items():
        for _ in range(WARM_UP):
            step()
        busy[name] = 2 * min(_once(step, 0.0)[1] for _ in range(3)) + 1e-4
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name].append(_once(step, busy[name]))
    return {
        name: GpuTiming(*(Timing(*statistics.quantiles(t, n=4)) for t in zip(*both, strict=True)))
        for name, both in samples.items()
    }
