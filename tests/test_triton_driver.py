"""Triton's own launchers, up to the calls of the driver, which a stand-in records."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .harness.driver.launch import STREAM

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="Triton needs a C compiler"),
]

DRIVER = Path(__file__).parent / "harness" / "driver"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The stand-in, under the name that Triton links with."""
    target = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, DRIVER / "libcuda.c", "-o", target], check=True)
    return target


@pytest.mark.parametrize("counter", ["host", "float32", "float64"])
def test_what_the_driver_is_asked_to_launch(counter, library):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_LIBCUDA_PATH"] = str(library.parent)
    command = [sys.executable, "-m", "tests.harness.driver.launch", library, counter]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=DRIVER.parents[2], env=environment
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    step = {
        "kernel": "step_kernel",
        "grid": [4, 1, 1],
        "block": [128, 1, 1],
        "shared": 0,
        "stream": STREAM,
        "arguments": [
            *(shown[n] for n in ("segments", "index", "index_shift", "coefficients")),
            *(0, shown["coefficients"]),  # neither random bits nor sums
        ],
    }
    prologue = {
        **step,
        "kernel": "prologue_kernel",
        "grid": [2, 1, 1],
        "block": [32, 1, 1],
        "arguments": [*(shown[n] for n in ("segments", "given", "coefficients")), 0, 0, 0],
    }
    assert shown["launches"] == ([step] if counter == "host" else [prologue, step])
