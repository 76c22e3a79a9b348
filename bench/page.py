"""Writes the recorded results into docs/performance.md and docs/storage-formats.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radam_fused.benchmark.limit import BYTES
from radam_fused.benchmark.timing import Timing, timings, verdict

from . import formats_page
from .bandwidth_limit import COPY, LIMIT
from .cases import CASES, MANY
from .charts import HEADLINE
from .flat_buffers import FLAT, FLAT_GRADIENTS
from .machine import where
from .paper.page import markdown, put
from .rivals import CLIPPED, FOREACH, FUSED_ADAMW, OURS, RADAM
from .tables import (
    cpu_table,
    cpu_targets,
    fastest_first,
    flat_target,
    scaling_table,
    targets_table,
)

Record = dict[str, Any]

RECORDS = ("cpu", "epyc", "gpu", "sharded", "clipping")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def _results(record: Record) -> dict[str, Any]:
    return {case: timings(section) for case, section in record["seconds"].items()}


def _milliseconds(timing: Timing, digits: int = 2) -> list[str]:
    """The median, and the quartiles."""
    median, low, high = (
        f"{seconds * 1e3:.{digits}f}"
        for seconds in (timing.median, timing.lower_quartile, timing.upper_quartile)
    )
    return [median, f"{low} - {high}"]


def _targets(record: Record) -> str:
    flat = timings(record["seconds_flat"][f"{MANY}: a step"])
    return targets_table([*cpu_targets(_results(record)), flat_target(flat)], "github")


def _flat(record: Record) -> str:
    rows = []
    for case, section in record["seconds_flat"].items():
        measured = timings(section)
        for name, t in measured.items():
            how = verdict(measured[OURS], t) if name in (FLAT, FLAT_GRADIENTS) else ""
            rows.append([case, name, *_milliseconds(t), how])
    return markdown(rows, ["work", "optimizer", "ms", "quartiles", f"plain {OURS} is"])


def _sharded(record: Record) -> str:
    """Times of sharded parameters, the fastest first."""
    rows = []
    for case, of in _results(record).items():
        for name, t in fastest_first(of).items():
            how = "" if name in (OURS, LIMIT) else verdict(of[OURS], t)
            share = f"{of[LIMIT].median / t.median:.3f}"
            rows.append([case, name, *_milliseconds(t), share, how])
    head = ["case", "optimizer", "ms", "quartiles", "of the limit", f"{OURS} on DTensors is"]
    return markdown(rows, head)


def _clipping(record: Record) -> str:
    """Times of steps that clip, the fastest first."""
    rows = []
    for case, of in _results(record).items():
        for name, t in fastest_first(of).items():
            how = "" if name == CLIPPED else verdict(of[CLIPPED], t)
            rows.append([case, name, *_milliseconds(t), how])
    return markdown(rows, ["case", "step", "ms", "quartiles", f"{CLIPPED} is"])


def _gpu(record: Record) -> str:
    """Device times of a record of a GPU, with the verdicts."""
    rows = []
    for case, of in record["cases"].items():
        device = timings({name: clocks["device"] for name, clocks in of["seconds"].items()})
        for name, t in device.items():
            if name == COPY:  # moves fewer bytes
                continue
            share = of["elements"] * BYTES / t.median / 1e9
            rows.append(
                [
                    f"{case}, {of['elements']:,} elements",
                    name,
                    *_milliseconds(t, 3),
                    f"{share:.0f}",
                    "" if name in (OURS, LIMIT) else verdict(device[OURS], t),
                ]
            )
    return markdown(rows, ["case", "", "device ms", "quartiles", "GB/s", f"{OURS} is"])


def headline(cpu: Record) -> str:
    """The first figures of the README, in words."""
    measured = _results(cpu)[HEADLINE]
    ours, limit = measured[OURS], measured[LIMIT]
    radam, adamw = (
        verdict(ours, measured[rival]).replace(" x ", " times ") for rival in (RADAM, FUSED_ADAMW)
    )
    adamw += " with" if adamw == "level" else " than"
    return (
        f"**{radam} than `torch.optim.RAdam`**, {adamw} fused AdamW, and "
        f"at {limit.median / ours.median:.0%} of the memory limit"
    )


def gpu_headline(gpu: Record) -> str:
    """The figures of a GPU in the README: ranges over the cases."""
    shares = []
    for rival in (FUSED_ADAMW, FOREACH):
        ratios = [
            of["seconds"][OURS]["device"]["median"] / of["seconds"][rival]["device"]["median"]
            for of in gpu["cases"].values()
        ]
        shares.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
    return f"{shares[0]} of the time of fused AdamW and {shares[1]} of `torch.optim.RAdam`"


def sections(
    cpu: Record, epyc: Record, gpu: Record, sharded: Record, clipping: Record
) -> Iterator[tuple[str, str]]:
    """Every generated part of the page, by name.

    Args:
        cpu: The record bench/results/cpu.json.
        epyc: The record of another processor, bench/results/epyc.json.
        gpu: The record bench/results/gpu.json.
        sharded: The record bench/results/sharded.json.
        clipping: The record bench/results/clipping.json.
    """
    yield "machine", where(cpu)
    results = _results(cpu)
    yield (
        "cases",
        "\n\n".join(cpu_table(case, of, CASES[case], "github") for case, of in results.items()),
    )
    yield (
        "scaling",
        "\n\n".join(
            scaling_table(sweep, {n: timings(of) for n, of in points.items()}, "github")
            for sweep, points in cpu["seconds_scaling"].items()
        ),
    )
    yield "flat", _flat(cpu)
    yield "machine of sharded parameters", where(sharded)
    yield "sharded", _sharded(sharded)
    yield "targets of sharded parameters", targets_table(sharded["targets"], "github")
    yield "machine of clipping", where(clipping)
    yield "clipping", _clipping(clipping)
    yield "targets of clipping", targets_table(clipping["targets"], "github")
    yield "gpu", _gpu(gpu)
    yield "targets", _targets(cpu)
    yield "machine of the other record", where(epyc)
    yield "targets of the other record", _targets(epyc)


def write(folder: Path) -> None:
    """Write the records of a folder into the pages."""
    records = {name: json.loads((folder / f"{name}.json").read_text()) for name in RECORDS}
    for name, text in sections(**records):
        put(name, text, PAGE)
    for name, text in formats_page.sections(json.loads((folder / "formats.json").read_text())):
        put(name, text, formats_page.PAGE)
