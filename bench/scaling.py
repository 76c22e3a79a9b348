"""Measures how the time per step grows with parameters, tensors and threads."""

import multiprocessing
import os
import warnings
from typing import NamedTuple

import torch

from radam_fused.benchmark.timing import Timing, interleave

from .bandwidth_limit import LIMIT, limit, new_arrays
from .cases import Shapes, elements
from .rivals import OURS, RIVALS

Scaling = dict[str, dict[str, dict[str, Timing]]]

SHOWN = [OURS, "torch AdamW fused", "torch RAdam"]


class Point(NamedTuple):
    """The tensors and the threads of one measurement."""

    shapes: Shapes
    threads: int


def sweeps() -> dict[str, dict[str, Point]]:
    """The points of each sweep, by their numbers."""
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    sizes = [k * 10**n for n in range(4, 8) for k in (1, 3)] + [10**8]
    counts = [4**n for n in range(7)]
    pools = sorted({2**n for n in range(10) if 2**n < cores} | {cores})
    return {
        "parameters of one tensor": {f"{n}": Point([(n,)], threads) for n in sizes},
        "tensors of 4,194,304 parameters": {
            f"{n}": Point([(4**11 // n,)] * n, threads) for n in counts
        },
        "threads on one tensor of 25,000,000": {f"{n}": Point([(25_000_000,)], n) for n in pools},
    }


def _time_point(sweep: str, number: str) -> dict[str, Timing]:
    warnings.simplefilter("ignore")
    shapes, threads = sweeps()[sweep][number]
    torch.set_num_threads(threads)
    steps = {name: RIVALS[name](shapes) for name in SHOWN}
    steps[LIMIT] = limit(new_arrays(elements(shapes)))
    rounds = min(201, max(7, 250_000_000 // elements(shapes)))
    return interleave(steps, rounds, f"{number} {sweep}")


def time_scaling() -> Scaling:
    """Time every point of every sweep, each in its own process."""
    found: Scaling = {}
    for sweep, points in sweeps().items():
        found[sweep] = {}
        for number in points:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[sweep][number] = pool.apply(_time_point, [sweep, number])
    return found
