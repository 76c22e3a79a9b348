"""Times every case against every rival, prints the tables, writes JSON, charts and a page."""

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from .case_process import allocated, time_case, time_cycles, time_steps
from .cases import CASES, MANY
from .charts import draw, draw_scaling
from .compare import compare
from .machine import machine
from .page import page
from .report import (
    BYTES,
    Results,
    case_table,
    flat_table,
    flat_target,
    scaling_table,
    targets,
    targets_table,
)
from .scaling import time_scaling


def _as_dicts(results: Results) -> dict[str, Any]:
    return {
        case: {name: timing._asdict() for name, timing in timings.items()}
        for case, timings in results.items()
    }


def measure(folder: Path) -> None:
    """Everything, into a folder."""
    where = machine()
    print(f"{where['processor']}, {where['threads']} threads, commit {where['commit']}")
    results: Results = {}
    memory = {}
    for case, shapes in CASES.items():
        # A process for each case: what one leaves behind in memory must not slow the next.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results[case] = pool.apply(time_case, [case])
            memory[case] = pool.apply(allocated, [case])
        print(f"\n{case_table(case, results[case], shapes)}")
        print(f"bytes that one of our steps allocates: {memory[case]}")
    flat = {}
    for what, measured in ((f"{MANY}: a step", time_steps), (f"{MANY}: a cycle", time_cycles)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            flat[what] = pool.apply(measured, [MANY])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        flat["GPT-2 124M: a cycle"] = pool.apply(time_cycles, ["GPT-2 124M"])
    for what, timings in flat.items():
        print(f"\n{flat_table(what, timings)}")
    scaling = time_scaling()
    for sweep, points in scaling.items():
        print(f"\n{scaling_table(sweep, points)}")
    checked = [*targets(results), flat_target(flat[f"{MANY}: a step"])]
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
    (folder / "cpu.md").write_text(page(record))
    draw(results, folder / "cpu.png")
    draw_scaling(scaling, folder / "cpu_scaling.png")
    print(f"\nwritten: cpu.json, cpu.md, cpu.png and cpu_scaling.png in {folder}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    default = os.environ.get("OUT", Path(__file__).parent / "results")
    parser.add_argument("--out", type=Path, default=default, help="folder of the results")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="two files of results: print what got slower or faster, and measure nothing",
    )
    options = parser.parse_args(arguments)
    if options.compare:
        records = [json.loads(path.read_text()) for path in options.compare]
        for path, record in zip(options.compare, records, strict=True):
            if "seconds_flat" not in record:
                parser.error(f"{path} holds no results of make bench")
        print(compare(*records))
    else:
        measure(options.out)


if __name__ == "__main__":
    main()
