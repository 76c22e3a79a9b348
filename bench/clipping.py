"""Measures steps that clip: against clip_grad_norm_ before a step, and against a step alone."""

import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grad_norm_

from radam_fused import FusedRAdam
from radam_fused.benchmark.timing import Step, interleave, timings

from .cases import CASES as MODELS
from .cases import MANY, Shapes
from .machine import machine
from .record import run, save
from .rivals import CLIP_ADAMW, CLIPPED, FUSED_ADAMW, OURS, parameters
from .sharded import PROCESSES, shards, time_shapes
from .tables import Target

CLIP_OURS = f"clip_grad_norm_, {OURS}"
TRACKED = f"{OURS} track_update_norm"
NORM, READ = "the norm alone", "torch.sum of each gradient"

GPT2, DTENSORS = "GPT-2 124M", "300 DTensors of 64x16"
ALONE = f"{DTENSORS}, one process"
CASES: dict[str, Shapes] = {
    GPT2: MODELS[GPT2],
    MANY: MODELS[MANY],
    DTENSORS: [(64, 16)] * 300,
    ALONE: [(64, 16)] * 300,
}
ROUNDS = {GPT2: 41, MANY: 201, DTENSORS: 201, ALONE: 201}

TARGETS = [
    Target(GPT2, CLIPPED, CLIP_ADAMW, 0.84),
    Target(GPT2, CLIPPED, OURS, 1.20),
    Target(GPT2, TRACKED, OURS, 1.05),
    Target(GPT2, NORM, READ, 0.93, is_share_of_bandwidth=True),
    Target(MANY, CLIPPED, CLIP_ADAMW, 0.25),
    *(Target(case, CLIPPED, CLIP_ADAMW, 0.10) for case in (DTENSORS, ALONE)),
]

Parameters = list[torch.nn.Parameter]


def _after_clipping(params: Parameters, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        clip_grad_norm_(params, 1.0)
        optimizer.step()

    return step


def _norm_alone(params: Parameters) -> Step:
    """What a step that clips does before it runs, with all checks of its tensors."""
    optimizer = FusedRAdam(params, max_grad_norm=1.0, backend="cpu")
    optimizer.step()
    [launch] = optimizer._plan.launches
    sums = torch.zeros(len(params), dtype=torch.float64)

    def step() -> None:
        launch.read(optimizer.param_groups, optimizer.state, True)
        launch.sum_squares(sums, [0])
        launch.release()

    return step


def _read(params: Parameters) -> Step:
    return lambda: [p.grad.sum() for p in params if p.grad is not None]


def steps_of(make: Callable[[], Parameters]) -> dict[str, Step]:
    """The steps of this benchmark, by name, each on its own tensors.

    A step on the tensors of the step before would find small ones in the cache.
    """
    clipped, tracked = {"max_grad_norm": 1.0}, {"track_update_norm": True}
    steps = {
        name: FusedRAdam(make(), backend="cpu", **options).step
        for name, options in ((CLIPPED, clipped), (OURS, {}), (TRACKED, tracked))
    }
    ours, theirs = make(), make()
    return steps | {
        CLIP_OURS: _after_clipping(ours, FusedRAdam(ours, backend="cpu")),
        CLIP_ADAMW: _after_clipping(theirs, torch.optim.AdamW(theirs, fused=True)),
        FUSED_ADAMW: torch.optim.AdamW(make(), fused=True).step,
    }


def sharded_steps(shapes: Shapes, mesh: DeviceMesh) -> dict[str, Step]:
    """The steps on DTensors, by name."""
    return steps_of(lambda: shards(shapes, mesh))


def time_case(case: str, shapes: Shapes, rounds: int) -> dict[str, Any]:
    """Time every step of a case on plain tensors."""
    warnings.simplefilter("ignore")
    steps = steps_of(lambda: parameters(shapes))
    steps |= {NORM: _norm_alone(parameters(shapes)), READ: _read(parameters(shapes))}
    found = interleave(steps, rounds, case)
    return {name: timing._asdict() for name, timing in found.items()}


def _measured(case: str) -> dict[str, Any]:
    if case in (DTENSORS, ALONE):
        processes = PROCESSES if case == DTENSORS else 1
        return time_shapes(CASES[case], ROUNDS[case], case, sharded_steps, processes)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(time_case, [case, CASES[case], ROUNDS[case]])


def measure(folder: Path) -> None:
    """Run the benchmark and write clipping.json, and the page about bench/results."""
    where = machine() | {"processes": {DTENSORS: PROCESSES}}
    seconds = {case: _measured(case) for case in CASES}
    results = {case: timings(section) for case, section in seconds.items()}
    checked = [
        t.check(results[t.case][t.ours], results[t.case][t.rival], f"{t.ours} / {t.rival}")
        for t in TARGETS
    ]
    save("clipping", {"machine": where, "seconds": seconds, "targets": checked}, folder)


if __name__ == "__main__":
    run("clipping", __doc__, measure)
