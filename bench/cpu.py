"""The benchmark on a CPU: every case, flat buffers and scaling, each in its own process."""

import json
import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from radam_fused.benchmark.timing import Timing, interleave

from .bandwidth_limit import LIMIT, limit, new_arrays
from .cases import CASES, MANY, elements
from .charts import HEADLINE, draw, draw_headline, draw_scaling
from .flat_buffers import time_cycles, time_steps
from .machine import IMAGES, RESULTS, machine
from .page import write
from .rivals import OURS, rivals_of
from .scaling import time_scaling
from .tables import (
    BYTES,
    Results,
    cpu_table,
    cpu_targets,
    flat_target,
    scaling_table,
    table,
    targets_table,
)

Measured = TypeVar("Measured")


def time_case(case: str) -> dict[str, Timing]:
    """Time every optimizer of a case, each on its own tensors, and the bandwidth limit."""
    warnings.simplefilter("ignore")
    shapes = CASES[case]
    steps = {rival: make(shapes) for rival, make in rivals_of(shapes).items()}
    steps[LIMIT] = limit(new_arrays(elements(shapes)))
    return interleave(steps, 21 if elements(shapes) > 10**8 else 61, case)


def allocated(case: str) -> int:
    """Bytes of tensors that a step of FusedRAdam allocates after the first steps."""
    warnings.simplefilter("ignore")
    step = rivals_of(CASES[case])[OURS](CASES[case])
    for _ in range(8):
        step()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())


def in_a_process(measure: Callable[[str], Measured], case: str) -> Measured:
    """Measure a case in a new process, whose memory holds nothing of other cases."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, [case])


def _as_dicts(results: Results) -> dict[str, Any]:
    return {
        case: {name: timing._asdict() for name, timing in timings.items()}
        for case, timings in results.items()
    }


def measure(folder: Path) -> None:
    """Run the benchmark and write cpu.json and the charts, and the page about bench/results."""
    where = machine()
    print(f"{where['processor']}, {where['threads']} threads, commit {where['commit']}")
    results: Results = {}
    memory = {}
    for case, shapes in CASES.items():
        results[case] = in_a_process(time_case, case)
        memory[case] = in_a_process(allocated, case)
        print(f"\n{cpu_table(case, results[case], shapes)}")
        print(f"bytes that one of our steps allocates: {memory[case]}")
    flat = {
        f"{MANY}: a step": in_a_process(time_steps, MANY),
        f"{MANY}: a cycle": in_a_process(time_cycles, MANY),
        "GPT-2 124M: a cycle": in_a_process(time_cycles, "GPT-2 124M"),
    }
    for title, timings in flat.items():
        print(f"\n{table(title, timings, digits='.2f')}")
    scaling = time_scaling()
    for sweep, points in scaling.items():
        print(f"\n{scaling_table(sweep, points)}")
    checked = [*cpu_targets(results), flat_target(flat[f"{MANY}: a step"])]
    print(f"\n{targets_table(checked)}")

    record = {
        "machine": where,
        "bytes_per_element": BYTES,
        "seconds": _as_dicts(results),
        "seconds_flat": _as_dicts(flat),
        "seconds_scaling": {sweep: _as_dicts(points) for sweep, points in scaling.items()},
        "bytes_allocated_by_a_step": memory,
        "targets": checked,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    pictures = IMAGES if folder.resolve() == RESULTS else folder
    draw(results, pictures / "cpu.png")
    draw_scaling(scaling, pictures / "cpu_scaling.png")
    draw_headline(results[HEADLINE], pictures / "headline.png")
    if folder.resolve() == RESULTS:
        write(folder)
    print(f"\nwritten: cpu.json in {folder}, pictures in {pictures}")
