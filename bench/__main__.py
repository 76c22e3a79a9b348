"""Times every case against every rival, prints the tables, writes JSON and a chart."""

import argparse
import json
import multiprocessing
import os
import warnings
from pathlib import Path

import torch

from .cases import CASES, elements
from .limit import LIMIT, limit
from .machine import machine
from .report import BYTES, Results, case_table, draw, targets, targets_table
from .rivals import OURS, rivals_of
from .timing import Timing, interleave


def time_case(case: str) -> dict[str, Timing]:
    """Fresh tensors for every rival, all stepped in turns in this process."""
    warnings.simplefilter("ignore")
    shapes = CASES[case]
    steps = {rival: make(shapes) for rival, make in rivals_of(shapes).items()}
    steps[LIMIT] = limit(elements(shapes))
    return interleave(steps, 21 if elements(shapes) > 10**8 else 61, case)


def allocated(case: str) -> int:
    """Bytes of tensors that one of our steps allocates once it is warm."""
    warnings.simplefilter("ignore")
    step = rivals_of(CASES[case])[OURS](CASES[case])
    for _ in range(8):
        step()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    default = os.environ.get("OUT", Path(__file__).parent / "results")
    parser.add_argument("--out", type=Path, default=default, help="folder of the results")
    folder = parser.parse_args().out

    where = machine()
    print(f"{where['processor']}, {where['threads']} threads, commit {where['commit']}")
    results: Results = {}
    memory = {}
    for case in CASES:
        # A process for each case: what one leaves behind in memory must not slow the next.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results[case] = pool.apply(time_case, [case])
            memory[case] = pool.apply(allocated, [case])
        print(f"\n{case_table(case, results[case])}")
        print(f"bytes that one of our steps allocates: {memory[case]}")
    checked = targets(results)
    print(f"\n{targets_table(checked)}")

    record = {
        "machine": where,
        "bytes_per_element": BYTES,
        "seconds": {
            case: {name: timing._asdict() for name, timing in timings.items()}
            for case, timings in results.items()
        },
        "bytes_allocated_by_a_step": memory,
        "targets": checked,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(results, folder / "cpu.png")
    print(f"\nwritten: {folder / 'cpu.json'}, {folder / 'cpu.png'}")


if __name__ == "__main__":
    main()
