"""Times the step kernels with other constants, against those in use: python -m bench.tune.

A CUDA variant is a build of its own (bench/variant.py), a Triton variant a compilation. Each case
times all of them on the same tensors, interleaved, in a process of its own.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from radam_fused import FusedRAdam
from radam_fused.benchmark.rivals import SharedTensors
from radam_fused.benchmark.timing import Clock, Step, device_clock, interleave

from . import variant
from .cases import MANY, Shapes, elements, gpt2_xl, llama3_8b, scaled, within
from .cuda import in_a_process, most_elements, new_record, run_cases
from .options import add_folder
from .rivals import available
from .tables import variants_table

IN_USE = "in use"

CUDA = [
    variant.Variant(name, tuple(f"RADAM_{key}={value}" for key, value in constants.items()))
    for name, constants in {
        "64 threads": {"THREADS": 64},
        "256 threads": {"THREADS": 256},
        "512 threads": {"THREADS": 512},
        # Each block loops, as in torch's fused optimizers, whose chunks have 65,536 elements.
        "chunks of 4,096": {"ELEMENTS": 32},
        "512 threads, 4 elements in flight, chunks of 65,536": {
            "THREADS": 512,
            "ELEMENTS": 128,
            "IN_FLIGHT": 4,
        },
        "4 elements": {"ELEMENTS": 4, "IN_FLIGHT": 4},
        "16 elements": {"ELEMENTS": 16, "IN_FLIGHT": 16, "RESIDENT": 512},
        "512 threads resident": {"RESIDENT": 512},
        "640 threads resident": {"RESIDENT": 640},
        "896 threads resident": {"RESIDENT": 896},
    }.items()
]


class TritonVariant(NamedTuple):
    """Constants of the Triton kernel.

    Attributes:
        name: Its name.
        chunk: Elements per program.
        threads: Threads per program.
        registers: The limit of registers per thread; 0 for none, None for that in use.
    """

    name: str
    chunk: int = 1024
    threads: int = 128
    registers: int | None = None


TRITON = [
    TritonVariant("64 threads", 512, 64),
    TritonVariant("256 threads", 2048, 256),
    TritonVariant("16 elements", 2048, 128, 128),
    TritonVariant("4 elements", 512, 128, 56),
    TritonVariant("no limit of registers", registers=0),
    TritonVariant("96 registers", registers=96),
]

CASES: dict[str, tuple[Callable[[int], Shapes], torch.dtype]] = {
    "1B flat": (lambda most: [(min(10**9, most),)], torch.float32),
    "GPT-2 XL": (partial(scaled, gpt2_xl), torch.float32),
    "Llama 3 8B": (partial(scaled, llama3_8b), torch.float32),
    MANY: (lambda most: [(64, 16)] * 1000, torch.float32),
    "1B flat, bfloat16": (lambda most: [(min(10**9, most),)], torch.bfloat16),
    "GPT-2 XL, bfloat16": (partial(scaled, gpt2_xl), torch.bfloat16),
}


class Tuned(SharedTensors):
    """FusedRAdam with other constants, on shared tensors."""

    def _step(self, backend: str) -> Step:
        return self.share(FusedRAdam(self.params, backend=backend), torch.float32)

    def _cuda(self, built: variant.Variant) -> Step:
        step = self._step("cuda")
        variant.take_first_step(step, built)
        return step

    def _triton(self, given: TritonVariant) -> Step:
        from radam_fused.triton_kernels import compiled, upload

        in_use = compiled.options_for

        def options(target: Any, *kind: Any) -> dict[str, int]:
            found = in_use(target, *kind)
            found["num_warps"] = given.threads // target.warp_size
            if given.registers is not None:
                found["maxnreg"] = given.registers
            return {key: value for key, value in found.items() if value}

        step = self._step("triton")
        with ExitStack() as patches:
            for module in (compiled, upload):
                patches.enter_context(mock.patch.object(module, "CHUNK", given.chunk))
            patches.enter_context(mock.patch.object(compiled, "options_for", options))
            step()  # compiles; its launches keep the kernels
        return step

    def steps(self) -> dict[str, Step]:
        """A step of each variant that can be built."""
        makers: dict[str, Callable[[], Step]] = {}
        for backend, one, variants in (
            ("cuda", self._cuda, CUDA),
            ("triton", self._triton, TRITON),
        ):
            makers[f"{backend}, {IN_USE}"] = partial(self._step, backend)
            for given in variants:
                makers[f"{backend}, {given.name}"] = partial(one, given)  # type: ignore[operator]
        return available(makers)


def time_case(name: str, most: int, device: str = "cuda", clock: Clock = device_clock) -> Any:
    """Time one case.

    Args:
        name: Its name.
        most: The largest number of elements.
        device: Device of the tensors.
        clock: The clock.

    Returns:
        The entry of the case in the record.
    """
    make, dtype = CASES[name]
    shapes = within(make(most), most)
    rounds = 21 if elements(shapes) > 10**7 else 101
    steps = Tuned(shapes, device, dtype).steps()
    timings = interleave(steps, rounds, name, clock)
    return {
        "elements": elements(shapes),
        "tensors": len(shapes),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {step: timing._asdict() for step, timing in timings.items()},
    }


def measure(folder: Path, seconds: float) -> list[str]:
    """Build the variants, and time cases for so long; returns the names of those that failed."""
    with ThreadPoolExecutor(4) as pool:
        built = [pool.submit(variant.module, one) for one in CUDA]
    for one, result in zip(CUDA, built, strict=True):
        print(f"cuda, {one.name}: {result.exception() or 'built'}", flush=True)
    return run_cases(
        list(CASES),
        new_record(),
        folder / "tune.json",
        in_a_process(time_case, most_elements()),
        lambda name, measured: variants_table(name, measured, IN_USE),
        seconds,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    add_folder(parser)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit")
    options = parser.parse_args()
    failed = measure(options.out, options.seconds)
    print(f"failed: {', '.join(failed) or 'nothing'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
