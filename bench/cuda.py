"""The benchmark on a GPU. Every case runs in its own process; results are written after each."""

import json
import multiprocessing
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from radam_fused.benchmark.timing import Clock, Step, device_clock, enqueue_clock, interleave

from .bandwidth_limit import COPY, LIMIT, limit, new_arrays
from .cases import MANY, Shapes, elements, gpt2_xl, llama3_8b, resnet50, scaled, within
from .machine import gpu, machine
from .rivals import (
    ADAMW,
    CAPTURABLE,
    CLIP_ADAMW,
    CLIPPED,
    CLIPPED_TRITON,
    COMPILED,
    FLAT,
    FOREACH,
    FUSED_ADAMW,
    NARROW_MOMENTS,
    ONE_LAUNCH,
    OURS,
    REPLAYED,
    REPLAYED_TRITON,
    ROUGHLY,
    SCALED,
    SCALED_ADAMW,
    SPLIT,
    SPLIT_MOMENTS,
    SPLIT_REPLAYED,
    SPLIT_TRITON,
    TRITON,
    SharedRivals,
    bytes_per_element,
)
from .tables import Target, case_table, check_targets, targets_table

SECONDS = 120.0  # for one case, in its process
# Of one element over all optimizers: shared tensors, the limit's, temporaries, flat buffers.
_BYTES_OF_ALL = 64

_SOME = (OURS, TRITON, ADAMW, FUSED_ADAMW, FOREACH)
_ALL = (*_SOME, CAPTURABLE, REPLAYED, REPLAYED_TRITON, FLAT, "torch RAdam capturable", "torch Adam")


Record = dict[str, Any]


class Case(NamedTuple):
    """What one process measures.

    Attributes:
        shapes: Returns the shapes, given the largest number of elements.
        rivals: Names of the optimizers. The limit moves the bytes of the first one.
        dtype: Dtype of the parameters.
    """

    shapes: Callable[[int], Shapes]
    rivals: Sequence[str]
    dtype: torch.dtype = torch.float32


FLAT_1B, LLAMA, GPT2_XL, RESNET = "1B flat", "Llama 3 8B", "GPT-2 XL", "ResNet-50"
AS_ONE, BFLOAT16 = "one tensor of 1,024,000", ", bfloat16"
CASES = {
    FLAT_1B: Case(lambda most: [(min(10**9, most),)], (*_SOME, ROUGHLY)),
    LLAMA: Case(partial(scaled, llama3_8b), _SOME),
    GPT2_XL: Case(partial(scaled, gpt2_xl), _SOME),
    RESNET: Case(lambda most: resnet50(), _ALL),
    MANY: Case(lambda most: [(64, 16)] * 1000, _ALL),
    AS_ONE: Case(lambda most: [(min(1_024_000, most),)], _ALL),
    "5,000 tensors of 64x16": Case(lambda most: [(64, 16)] * 5000, _SOME),
}
CASES |= {
    f"{name}{BFLOAT16}": CASES[name]._replace(
        rivals=(OURS, TRITON, FUSED_ADAMW), dtype=torch.bfloat16
    )
    for name in (FLAT_1B, GPT2_XL)
}
CLIPPING = ", clipped"
CASES |= {
    f"{name}{CLIPPING}": CASES[name]._replace(
        rivals=(
            *(OURS, CLIPPED, CLIPPED_TRITON, CLIP_ADAMW, ONE_LAUNCH),
            *(SCALED, SCALED_ADAMW, FUSED_ADAMW),
        )
    )
    for name in (GPT2_XL, MANY)
}
FORMAT_CASES = {
    f"{FLAT_1B}, bfloat16 moments": CASES[FLAT_1B]._replace(rivals=(OURS, NARROW_MOMENTS)),
    f"{FLAT_1B}, split masters": CASES[FLAT_1B]._replace(
        rivals=(SPLIT, SPLIT_MOMENTS, SPLIT_REPLAYED, SPLIT_TRITON, OURS), dtype=torch.bfloat16
    ),
}
CASES |= FORMAT_CASES
# Last, because compilation takes long.
COMPILED_CASES = {
    f"{name}, compiled": CASES[name]._replace(rivals=(OURS, COMPILED))
    for name in (FLAT_1B, RESNET, GPT2_XL)
}

TARGETS = [
    Target(FLAT_1B, OURS, LIMIT, 0.97, is_share_of_bandwidth=True),
    Target(FLAT_1B, OURS, FUSED_ADAMW, 1.00),
    *(Target(case, OURS, FUSED_ADAMW, 0.95) for case in (LLAMA, GPT2_XL)),
    *(Target(case, OURS, FOREACH, 0.36) for case in (LLAMA, GPT2_XL)),
    *(Target(case, OURS, COMPILED, 0.80) for case in COMPILED_CASES),
    Target(MANY, OURS, FUSED_ADAMW, 0.20, clock="host"),
    Target(FLAT_1B, OURS, ROUGHLY, 1.02),
    *(Target(case, TRITON, OURS, 1.05) for case in (FLAT_1B, LLAMA)),
    Target(f"{GPT2_XL}{CLIPPING}", CLIPPED, CLIP_ADAMW, 0.82),
    Target(f"{GPT2_XL}{CLIPPING}", SCALED, SCALED_ADAMW, 0.88),
    Target(f"{GPT2_XL}{CLIPPING}", CLIPPED, ONE_LAUNCH, 0.90),
    Target(f"{FLAT_1B}, bfloat16 moments", NARROW_MOMENTS, OURS, 0.85),
    Target(f"{FLAT_1B}, split masters", SPLIT, LIMIT, 0.95, is_share_of_bandwidth=True),
    Target(f"{FLAT_1B}, split masters", SPLIT_REPLAYED, LIMIT, 0.95, is_share_of_bandwidth=True),
]

CLOCKS: dict[str, Clock] = {"device": device_clock, "host": enqueue_clock}


def _limits(rivals: SharedRivals, first: str, size: int, device: str) -> dict[str, Step]:
    """The bandwidth limits, on the optimizers' tensors if these are four float32 arrays."""
    dtype = rivals.params[0].dtype
    if len(rivals.params) == 1 and dtype == torch.float32:
        [param] = rivals.params
        assert param.grad is not None
        arrays = [t.detach().view(-1) for t in (param, param.grad, *rivals.moments(dtype)[0])]
    else:
        arrays = new_arrays(int(size * bytes_per_element(first, dtype) // 28), device)
    found: dict[str, Step] = {COPY: partial(arrays[2].copy_, arrays[3])}
    try:
        found[LIMIT] = limit(arrays)
    except (OSError, subprocess.SubprocessError) as error:  # no nvcc, as on ROCm
        warnings.warn(f"{LIMIT} is left out: {error}", stacklevel=2)
    return found


def time_case(
    case: Case, name: str, most: int, device: str = "cuda", clocks: dict[str, Clock] = CLOCKS
) -> dict[str, Any]:
    """Measure one case.

    Args:
        case: The case.
        name: Its name.
        most: The largest number of elements.
        device: Device of the tensors.
        clocks: The clocks; each measures in its own pass.

    Returns:
        The entry of the case in the record.
    """
    shapes = within(case.shapes(most), most)
    size = elements(shapes)
    rivals = SharedRivals(shapes, device, case.dtype)
    names = [*case.rivals, *(["apex FusedAdam"] if find_spec("apex") else [])]
    steps = rivals.steps(names) | _limits(rivals, names[0], size, device)
    rounds = 21 if size > 10**7 else 101
    passes = {
        clock: interleave(steps, rounds, f"{name}, {clock}", make) for clock, make in clocks.items()
    }
    moved: dict[str, float] = {step: bytes_per_element(step, case.dtype) for step in steps}
    if LIMIT in moved:
        moved[LIMIT] = bytes_per_element(names[0], case.dtype)
    moved[COPY] = bytes_per_element(names[0], case.dtype) * 2 / 7
    return {
        "elements": size,
        "tensors": len(shapes),
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes_per_element": moved,
        "seconds": {
            step: {clock: passes[clock][step]._asdict() for clock in clocks} for step in steps
        },
    }


def _time_named(name: str, most: int) -> dict[str, Any]:
    return time_case((CASES | COMPILED_CASES)[name], name, most)


def most_elements() -> int:
    """The largest number of elements that fits into the memory of the current GPU."""
    return int(torch.cuda.mem_get_info()[0] * 0.9 / _BYTES_OF_ALL)


def new_record() -> Record:
    """A record without cases; prints what it is about."""
    record = {"machine": machine() | gpu(), "bytes_per_element": 28, "cases": {}}
    print(f"{record['machine']['gpu']}, commit {record['machine']['commit']}", flush=True)
    return record


def _quietly(function: Callable[[str, int], Record], name: str, most: int) -> Record:
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", message=".* is left out")
    return function(name, most)


def in_a_process(
    function: Callable[[str, int], Record], most: int
) -> Callable[[str, float], Record]:
    """Measures a case in a new process, given its name and a time limit in seconds."""

    def run(name: str, seconds: float) -> Record:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            done: Record = pool.apply_async(_quietly, [function, name, most]).get(seconds)
            return done

    return run


def run_cases(
    names: Sequence[str],
    record: Record,
    path: Path,
    run: Callable[[str, float], Record],
    text: Callable[[str, Record], str],
    seconds: float,
) -> list[str]:
    """Run cases one after the other and write the record after each.

    Args:
        names: Names of the cases.
        record: The record, to which the cases are added.
        path: The file of the record.
        run: Measures a case within a time limit.
        text: Returns what to print of a case, before the record is written.
        seconds: Time limit of all cases. Those that do not fit count as failed.

    Returns:
        The names of the cases that failed.
    """
    failed = []
    end = time.monotonic() + seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        left = end - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError(f"no time is left of {seconds:.0f} s")
            measured = run(name, min(SECONDS, left))
        except Exception as error:  # one case must not stop the others
            print(f"\n{name} failed: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        record["cases"][name] = measured
        shown = text(name, measured)
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"\n{shown}", flush=True)
    return failed


def measure(
    folder: Path,
    chosen: Sequence[str] = (),
    with_compiled: bool = True,
    seconds: float = float("inf"),
) -> list[str]:
    """Run the benchmark on the current GPU.

    Args:
        folder: Folder of the results.
        chosen: Names of the cases; empty for all.
        with_compiled: Whether to run the cases of torch.compile.
        seconds: Time limit. What is measured by then is kept.

    Returns:
        The names of the cases that failed.
    """
    record = new_record()

    def text(name: str, measured: Record) -> str:
        record["targets"] = check_targets(TARGETS, record["cases"])
        return case_table(name, measured, record["machine"])

    names = chosen or [*CASES, *(COMPILED_CASES if with_compiled else [])]
    run = in_a_process(_time_named, most_elements())
    failed = run_cases(names, record, folder / "gpu.json", run, text, seconds)
    print(
        f"\n{targets_table(record.get('targets', []))}\n\nfailed: {', '.join(failed) or 'nothing'}"
    )
    return failed
