"""Times every case against every rival, prints the tables, writes JSON and a chart."""

import argparse
import json
import multiprocessing
import os
from pathlib import Path

from .case_process import allocated, time_case
from .cases import CASES
from .machine import machine
from .report import BYTES, Results, case_table, draw, targets, targets_table


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
