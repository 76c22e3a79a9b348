"""Times every case against every rival, prints the tables, writes JSON and a chart."""

import argparse
import json
import multiprocessing
import os
from pathlib import Path

from .case_process import allocated, time_case, time_cycles, time_steps
from .cases import CASES, MANY
from .machine import machine
from .report import (
    BYTES,
    Results,
    case_table,
    draw,
    flat_table,
    flat_target,
    targets,
    targets_table,
)


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
    flat = {}
    for what, measure in ((f"{MANY}: a step", time_steps), (f"{MANY}: a cycle", time_cycles)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            flat[what] = pool.apply(measure, [MANY])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        flat["GPT-2 124M: a cycle"] = pool.apply(time_cycles, ["GPT-2 124M"])
    for what, timings in flat.items():
        print(f"\n{flat_table(what, timings)}")
    checked = [*targets(results), flat_target(flat[f"{MANY}: a step"])]
    print(f"\n{targets_table(checked)}")

    record = {
        "machine": where,
        "bytes_per_element": BYTES,
        "seconds": {
            case: {name: timing._asdict() for name, timing in timings.items()}
            for case, timings in results.items()
        },
        "seconds_flat": {
            what: {name: timing._asdict() for name, timing in timings.items()}
            for what, timings in flat.items()
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
