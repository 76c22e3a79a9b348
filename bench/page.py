"""The results on one page of Markdown, beside the pictures that it shows."""

from typing import Any

from .cases import CASES
from .report import case_table, flat_table, scaling_table, targets_table
from .timing import timings


def page(record: dict[str, Any]) -> str:
    """The page of a record as bench/results/cpu.json holds it."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    cases = "\n\n".join(
        f"{case_table(case, timings(section), CASES[case], 'github')}\n\n"
        f"Bytes that one of our steps allocates: {record['bytes_allocated_by_a_step'][case]}."
        for case, section in record["seconds"].items()
    )
    flat = "\n\n".join(
        flat_table(case, timings(section), "github")
        for case, section in record["seconds_flat"].items()
    )
    scaling = "\n\n".join(
        scaling_table(sweep, {n: timings(of) for n, of in points.items()}, "github")
        for sweep, points in record["seconds_scaling"].items()
    )
    return f"""# The time of a step on the CPU

By `make bench` on {machine["date"]} at commit {machine["commit"]}: {machine["processor"]},
{machine["threads"]} threads, {machine["instruction_set"]}, Python {machine["python"]}, {versions}.
All numbers, quartiles too, are in [cpu.json](cpu.json); two such files are compared by
`python -m bench --compare BEFORE AFTER`. What one case compares takes turns in one process.

## Against what else there is

![times of a step](cpu.png)

{cases}

## Targets

{targets_table(record["targets"], "github")}

## How it grows

![times by size, tensors and threads](cpu_scaling.png)

{scaling}

## Flat buffers

{flat}
"""
