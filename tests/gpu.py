"""The checks on a GPU: python -m tests.gpu build test sanitize bench, or make gpu.

Each command has a time limit, and a log in $OUT (default: build/gpu) that is written as it runs.
One that fails stops no other. Nothing is installed but this package. tests/harness/rehearsal runs
it without a GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench.machine import ROOT, find_tool

OUT = Path(os.environ.get("OUT", ROOT / "build" / "gpu"))

# Tool, backend and test. A capture needs the caching allocator; without it, memcheck sees every
# tensor. Only the kernels of the norms have shared memory, for racecheck.
SANITIZED = [
    ("memcheck", "cuda", "guards"),
    ("memcheck", "triton", "guards"),
    ("initcheck", "cuda", "guards"),
    ("memcheck", "cuda", "graphs"),
    ("memcheck", "triton", "graphs"),
    ("memcheck", "cuda", "norms"),
    ("racecheck", "cuda", "norms"),
    ("memcheck", "triton", "norms"),
]
NODES = {
    "guards": "tests/test_device_bits.py::test_drawn_tables_between_guards[{}-gpu-0]",
    "graphs": "tests/test_graphs.py::test_replays_are_steps[{}-gpu-plain-3]",
    "norms": "tests/test_update_norm.py::test_replays_track_the_update[{}-gpu]",
}

AVAILABLE = """
import torch
from radam_fused.backends import BACKENDS
wanted = ["triton"] if torch.version.hip else ["cuda", "triton"]
reasons = {name: BACKENDS[name].unavailable() for name in wanted}
print(reasons)
raise SystemExit(any(reasons.values()))
"""

PYTEST = ["-m", "pytest", "-v", "-m", "", "-p", "no:cacheprovider", "-p", "no:benchmark"]


class Check(NamedTuple):
    """A command of this Python.

    Attributes:
        name: Its name; its log is NAME.log.
        arguments: The arguments of Python, or a whole command if the first is an absolute path.
        seconds: Its time limit.
        environment: Variables of its environment.
    """

    name: str
    arguments: Sequence[str]
    seconds: int = 220
    environment: dict[str, str] = {}  # noqa: RUF012 (never changed)


def run(check: Check) -> bool:
    """Run a check, print and log its output as it comes, and return whether it passed."""
    first = Path(check.arguments[0])
    command = [*([] if first.is_absolute() else [sys.executable]), *check.arguments]
    print(f"== {check.name}: {' '.join(command)[:300]}", flush=True)
    environment = os.environ | check.environment
    with (
        open(OUT / f"{check.name}.log", "w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that its workers end with it
        ) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(check.seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            print(line, end="", file=log, flush=True)
        code = process.wait()
        timer.cancel()
    print(f"== {check.name}: {'passed' if code == 0 else f'failed, {code}'}", flush=True)
    return code == 0


def run_all(checks: Sequence[Check], at_once: int = 1) -> list[str]:
    """Run checks; returns the names of those that failed."""
    with ThreadPoolExecutor(at_once) as pool:
        passed = list(pool.map(run, checks))
    return [check.name for check, ok in zip(checks, passed, strict=True) if not ok]


def _has(tool: str) -> bool:
    try:
        find_tool(tool)
    except FileNotFoundError:
        return False
    return True


def _architectures() -> dict[str, str]:
    return {"CUDAARCHS": os.environ.get("CUDAARCHS", "native")}


def build() -> list[str]:
    """Install the package in this environment, with CUDA if there is a compiler."""
    environment = {"RADAM_FUSED_CUDA": str(int(_has("nvcc")))} | _architectures()
    pip = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."]
    return run_all([Check("build", pip, 400, environment)])


def test() -> list[str]:
    """The tests that use a GPU, in parallel."""
    parallel = []
    if find_spec("xdist"):
        parallel = ["-n", str(min(12, os.cpu_count() or 1)), "--dist", "worksteal"]
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return run_all(
        [
            Check("backends", ["-c", AVAILABLE], 60),
            Check("tests", [*PYTEST, "-k", "gpu", *parallel, "tests"], 220, environment),
        ]
    )


def sanitize() -> list[str]:
    """Some tests under compute-sanitizer, at the same time."""
    checks = []
    for tool, backend, test in SANITIZED:
        command = [find_tool("compute-sanitizer"), "--tool", tool, "--error-exitcode", "9"]
        command += [sys.executable, *PYTEST, NODES[test].format(backend)]
        without = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if test == "guards" else {}
        checks.append(Check(f"{tool}-{backend}-{test}", command, 200, without))
    return run_all(checks, len(checks))


def bench() -> list[str]:
    """The benchmark. Its results are written after each case."""
    command = ["-m", "bench", "--device", "cuda", "--seconds", "220", "--out", str(OUT)]
    return run_all([Check("bench", command, 240, _architectures())])


def tune() -> list[str]:
    """The sweep over the constants of the kernels."""
    command = ["-m", "bench.tune", "--seconds", "200", "--out", str(OUT)]
    return run_all([Check("tune", command, 300, _architectures())])


PARTS: dict[str, Callable[[], list[str]]] = {
    part.__name__: part for part in (build, test, sanitize, bench, tune)
}


def main() -> None:
    """Run the chosen parts; exits with 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS, help="what to run")
    OUT.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in parser.parse_args().parts:
        try:
            failed += PARTS[name]()
        except Exception as error:
            print(f"== {name}: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
    print(f"failed: {', '.join(failed) or 'nothing'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
