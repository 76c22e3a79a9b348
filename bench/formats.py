"""Measures steps that store parameters and moments in fewer bytes: their time, and their error."""

import argparse
import json
import multiprocessing
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from radam_fused import FusedRAdam
from radam_fused.benchmark.timing import Step, interleave, timings

from . import format_quality
from .bandwidth_limit import LIMIT, limit, new_arrays
from .cases import CASES as MODELS
from .cases import MANY, Shapes, elements
from .format_bytes import ADAMW, ADAMW_NARROW, FLOAT32, FLOAT32_MOMENTS, FORMATS, SPLIT
from .machine import machine
from .options import add_folder
from .record import save
from .rivals import available, parameters
from .tables import Target

LARGE = 10**7  # elements

GPT2 = "GPT-2 124M"
CASES: dict[str, Shapes] = {GPT2: MODELS[GPT2], MANY: MODELS[MANY]}
ROUNDS = {GPT2: 41, MANY: 201}

TARGETS = [
    Target(GPT2, FLOAT32_MOMENTS, FLOAT32, 0.85),
    Target(GPT2, SPLIT, FLOAT32, 1.00),
]
THEIRS = {ADAMW: torch.float32, ADAMW_NARROW: torch.bfloat16}

PARTS = ("times", "quality")


def steps_of(shapes: Shapes) -> dict[str, Step]:
    """The steps of this benchmark, by name.

    Those of a dtype share large gradients, which would not fit into memory otherwise. A step would
    find small ones of the step before in the cache.
    """
    drawn = parameters(shapes)
    shared: dict[torch.dtype, list[Tensor]] = {}

    def tensors(dtype: torch.dtype) -> list[Parameter]:
        params = [Parameter(p.detach().to(dtype, copy=True)) for p in drawn]
        grads = shared.get(dtype)
        if grads is None:
            grads = [p.grad.to(dtype, copy=True) for p in drawn if p.grad is not None]
        if elements(shapes) > LARGE:
            shared[dtype] = grads
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        return params

    def adamw(dtype: torch.dtype) -> Step:
        return torch.optim.AdamW(tensors(dtype), fused=True).step

    steps: dict[str, Step] = {
        name: FusedRAdam(tensors(format.dtype), backend="cpu", **format.options).step
        for name, format in FORMATS.items()
    }
    theirs = {name: partial(adamw, dtype) for name, dtype in THEIRS.items()}
    return steps | available(theirs) | {LIMIT: limit(new_arrays(elements(shapes)))}


def time_case(case: str, shapes: Shapes, rounds: int) -> dict[str, Any]:
    """Time every step of a case."""
    warnings.simplefilter("ignore")
    found = interleave(steps_of(shapes), rounds, case)
    return {name: timing._asdict() for name, timing in found.items()}


def _times() -> dict[str, Any]:
    where, seconds = machine(), {}
    for case, shapes in CASES.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds[case] = pool.apply(time_case, [case, shapes, ROUNDS[case]])
    return {"machine": where, "seconds": seconds}


def _targets(record: dict[str, Any]) -> list[dict[str, object]]:
    results = {case: timings(section) for case, section in record["seconds"].items()}
    checked = [
        t.check(results[t.case][t.ours], results[t.case][t.rival], f"{t.ours} / {t.rival}")
        for t in TARGETS
    ]
    return [*checked, *format_quality.targets(record["quality"])]


def measure(folder: Path, parts: tuple[str, ...] = PARTS) -> None:
    """Run the benchmark and write formats.json, and the pages about bench/results.

    Args:
        folder: Folder of the results.
        parts: The parts to measure. The record must hold the others already.
    """
    record: dict[str, Any] = {}
    if parts != PARTS:
        record = json.loads((folder / "formats.json").read_text())
    if "times" in parts:
        record |= _times()
    if "quality" in parts:
        record["quality"] = {"machine": machine()} | format_quality.measure()
    record["targets"] = _targets(record)
    save("formats", record, folder)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.formats", description=__doc__)
    add_folder(parser)
    parser.add_argument("--only", choices=PARTS, help="measure this part of a record again")
    options = parser.parse_args(arguments)
    measure(options.out, (options.only,) if options.only else PARTS)


if __name__ == "__main__":
    main()
