"""Writes the results on one page of Markdown, beside its pictures."""

from typing import Any

from radam_fused.benchmark.timing import timings

from .cases import CASES
from .tables import cpu_table, scaling_table, table, targets_table


def page(record: dict[str, Any]) -> str:
    """The page of a record in the form of bench/results/cpu.json."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    cases = "\n\n".join(
        f"{cpu_table(case, timings(section), CASES[case], 'github')}\n\n"
        f"Bytes that a step of FusedRAdam allocates: {record['bytes_allocated_by_a_step'][case]}."
        for case, section in record["seconds"].items()
    )
    flat = "\n\n".join(
        table(case, timings(section), tablefmt="github", digits=".2f")
        for case, section in record["seconds_flat"].items()
    )
    scaling = "\n\n".join(
        scaling_table(sweep, {n: timings(of) for n, of in points.items()}, "github")
        for sweep, points in record["seconds_scaling"].items()
    )
    return f"""# The time of a step on the CPU

Measured by `make bench` on {machine["date"]} at commit {machine["commit"]}: {machine["processor"]},
{machine["threads"]} threads, {machine["instruction_set"]}, Python {machine["python"]}, {versions}.
[cpu.json](cpu.json) has all numbers, with quartiles; `python -m bench --compare BEFORE AFTER`
compares two such files. The optimizers of one case run alternately in one process.

## Against other optimizers

![times of a step](cpu.png)

{cases}

## Targets

{targets_table(record["targets"], "github")}

## Scaling

![times by size, tensors and threads](cpu_scaling.png)

{scaling}

## Flat buffers

{flat}
"""
