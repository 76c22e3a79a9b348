"""What is measured of one case, each in a process of its own."""

import warnings

import torch

from .cases import CASES, elements
from .flat import time_cycles, time_steps
from .limit import LIMIT, limit
from .rivals import OURS, rivals_of
from .timing import Timing, interleave


def time_case(case: str) -> dict[str, Timing]:
    """Fresh tensors for every rival, all stepped in turns in this process."""
    warnings.simplefilter("ignore")
    shapes = CASES[case]
    steps = {rival: make(shapes) for rival, make in rivals_of(shapes).items()}
    steps[LIMIT] = limit(elements(shapes))
    return interleave(steps, 21 if elements(shapes) > 10**8 else 61, case)


__all__ = ["allocated", "time_case", "time_cycles", "time_steps"]


def allocated(case: str) -> int:
    """Bytes of tensors that one of our steps allocates once it is warm."""
    warnings.simplefilter("ignore")
    step = rivals_of(CASES[case])[OURS](CASES[case])
    for _ in range(8):
        step()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
