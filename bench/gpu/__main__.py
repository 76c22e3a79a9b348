"""Times every case against every rival on a GPU, prints the tables, writes JSON."""

import argparse
import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ..cases import elements
from ..limit import LIMIT
from ..machine import machine
from ..report import BYTES
from ..rivals import OURS
from . import variant
from .cases import AS_ONE, CASES, FLAT, GPT2_XL, LLAMA, THOUSAND
from .limit import COPY, limits
from .rivals import COMPILED, FOREACH, FUSED_ADAMW, ROUGHLY, TRITON, Rivals
from .rivals import FLAT as OURS_FLAT
from .timing import GpuTiming, interleave

Results = dict[str, dict[str, GpuTiming]]

COMPILE_SECONDS = 100  # after which a case is measured without torch.compile

# Case, ours, rival, clock, and the largest share of the rival's time that ours may take.
TARGETS = [
    (FLAT, OURS, LIMIT, "device", 1 / 0.97),
    (FLAT, OURS, FUSED_ADAMW, "device", 1.00),
    *((case, OURS, FUSED_ADAMW, "device", 0.95) for case in (LLAMA, GPT2_XL)),
    *((case, OURS, FOREACH, "device", 0.36) for case in (LLAMA, GPT2_XL)),
    *((case, OURS, COMPILED, "device", 0.80) for case in (LLAMA, GPT2_XL)),
    (THOUSAND, OURS, FUSED_ADAMW, "host", 0.20),
    (FLAT, OURS, ROUGHLY, "device", 1.02),
    (FLAT, TRITON, FUSED_ADAMW, "device", 1.00),
    *((case, TRITON, OURS, "device", 1.05) for case in (FLAT, LLAMA)),
]


def time_case(case: str, with_compiled: bool) -> tuple[int, int, dict[str, GpuTiming]]:
    """Elements, tensors and times of a case, in a process of its own."""
    warnings.simplefilter("ignore")
    shapes = CASES[case]()
    steps = Rivals(shapes).steps(with_compiled) | limits(elements(shapes))
    return elements(shapes), len(shapes), interleave(steps, 21)


def in_a_process(case: str) -> tuple[int, int, dict[str, GpuTiming]] | None:
    """What time_case returns, or None where even without torch.compile it fails."""
    for with_compiled in (True, False):
        if with_compiled and len(CASES[case]()) > 600:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            try:
                return pool.apply_async(time_case, [case, with_compiled]).get(
                    COMPILE_SECONDS if with_compiled else None
                )
            except multiprocessing.TimeoutError:
                print(f"{case}: torch.compile took more than {COMPILE_SECONDS} s, left out")
            except Exception as error:
                print(f"{case}, {'with' if with_compiled else 'without'} torch.compile: {error}")
    return None


def table(case: str, size: int, timings: dict[str, GpuTiming]) -> str:
    moved = {name: size * (8 if name == COPY else BYTES) / 1e9 for name in timings}
    rows = [
        [
            name,
            f"{t.device.median * 1e3:.4f}",
            f"{t.device.lower_quartile * 1e3:.4f} - {t.device.upper_quartile * 1e3:.4f}",
            f"{moved[name] / t.device.median:.0f}",
            f"{t.host.median * 1e3:.4f}",
            f"{timings[OURS].device.median / t.device.median:.3f}",
        ]
        for name, t in sorted(timings.items(), key=lambda item: item[1].device.median)
    ]
    head = [case, "device ms", "quartiles", "GB/s", "host ms", "ours / this"]
    return tabulate(rows, head, disable_numparse=True)


def targets(results: Results) -> list[dict[str, Any]]:
    """Each target with the figure reached."""
    checked = []
    for case, ours, rival, clock, bound in TARGETS:
        timings = results.get(case, {})
        if rival in timings:
            share = getattr(timings[ours], clock).median / getattr(timings[rival], clock).median
            what = f"{clock} time of {ours} over {rival}"
            checked.append(_checked(case, what, bound, share))
        else:
            print(f"not measured: {case}, {clock} time over {rival}")
    if AS_ONE in results and THOUSAND in results:
        one, flat = results[AS_ONE][OURS].device, results[THOUSAND][OURS_FLAT].device
        what = "device time of flatten=True over that of one tensor"
        checked.append(_checked(THOUSAND, what, 1.05, flat.median / one.median))
    return checked


def _checked(case: str, what: str, bound: float, figure: float) -> dict[str, Any]:
    return {
        "case": case,
        "what": what,
        "must be": f"<= {bound:.3f}",
        "is": round(figure, 4),
        "reached": figure <= bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    default = os.environ.get("OUT", Path(__file__).parents[1] / "results")
    parser.add_argument("--out", type=Path, default=default, help="folder of the results")
    folder = parser.parse_args().out

    where = machine() | {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": torch.cuda.get_device_capability(),
        "cuda_of_torch": torch.version.cuda,
    }
    print(f"{where['gpu']}, commit {where['commit']}")
    variant.build()
    results: Results = {}
    record: dict[str, Any] = {"machine": where, "bytes_per_element": BYTES, "cases": {}}
    for case in CASES:
        measured = in_a_process(case)
        if measured is None:
            continue
        size, count, results[case] = measured
        print(f"\n{table(f'{case}: {size:,} elements, {count} tensors', size, results[case])}")
        record["cases"][case] = {
            "elements": size,
            "tensors": count,
            "seconds": {
                name: {clock: t._asdict() for clock, t in timing._asdict().items()}
                for name, timing in results[case].items()
            },
        }
        # After every case: what was measured is kept whatever comes later.
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")
    record["targets"] = targets(results)
    (folder / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{tabulate(record['targets'], headers='keys', floatfmt='.3f')}")
    print(f"\nwritten: {folder / 'gpu.json'}")


if __name__ == "__main__":
    main()
