"""Rehearses the checks on a GPU: python -m tests.harness.rehearsal, or make gpu-rehearsal.

The build is real, for one architecture. The other parts run with the stand-in, at small sizes.
"""

import os
import subprocess
import sys
from pathlib import Path

from bench.machine import ROOT

from ..host_grid import host_grid

HERE = Path(__file__).parent
OFFLINE = {"PIP_NO_INDEX": "1", "CUDAARCHS": "90-real"}  # there is no GPU whose kind is "native"


def environment() -> dict[str, str]:
    """The environment of a process that has the stand-in."""
    return os.environ | {
        "RADAM_REHEARSAL": "1",
        # Built before, because the stand-in is also in the processes of a build.
        "RADAM_HOST_GRID": host_grid().__file__,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT))),
        "PATH": os.pathsep.join((str(HERE / "bin"), os.environ.get("PATH", ""))),
    }


def main() -> None:
    """Run every part; exits with an error if one failed."""
    gpu = [sys.executable, "-m", "tests.gpu"]
    drivers = [sys.executable, "-m", "pytest", "-q", "-m", "", "tests/test_triton_driver.py"]
    subprocess.run([*gpu, "build"], cwd=ROOT, env=os.environ | OFFLINE, check=True)
    with_stand_in = [*gpu, "test", "sanitize", "bench", "tune"]
    failed = [
        command
        for command, env in ((with_stand_in, environment()), (drivers, os.environ | OFFLINE))
        if subprocess.run(command, cwd=ROOT, env=env).returncode != 0
    ]
    if failed:
        sys.exit("\n".join(map(" ".join, failed)))


if __name__ == "__main__":
    main()
