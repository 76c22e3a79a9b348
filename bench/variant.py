"""The CUDA backend built with contraction and rough division, to measure the cost of exact bits."""

import importlib.util
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest import mock

from radam_fused import extension, plan
from radam_fused.backends import cuda, launches
from radam_fused.benchmark.timing import Step

from .bandwidth_limit import BUILD
from .machine import ROOT, find_tool

ROUGHLY = ["--fmad=true", "--prec-div=false", "--prec-sqrt=false", "--ftz=true"]
BUILT = BUILD / "roughly"


def library() -> str:
    """The path of the build, which is made once.

    Raises:
        RuntimeError: It cannot be built; the message ends with the output of the build.
    """
    target = BUILT / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists():
        return str(target)
    import pybind11

    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILT), "-GNinja", "-DRADAM_FUSED_CUDA=1"]
    configure += [f"-DCMAKE_CUDA_COMPILER={find_tool('nvcc')}"]
    configure += [f"-DRADAM_CUDA_ROUNDING={';'.join(ROUGHLY)}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(BUILT), "--target", "_C"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"cannot build {BUILT}: {(done.stdout + done.stderr)[-2000:]}")
    return str(target)


@cache
def _module() -> Any:
    spec = importlib.util.spec_from_file_location("_C", library())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.connect(extension.dense_copy)
    return module


def take_first_step(step: Step) -> None:
    """Take the first step of an optimizer with the other build, which its launches then keep."""
    with ExitStack() as patches:
        for user in (cuda, launches, plan):
            patches.enter_context(mock.patch.object(user, "_C", _module()))
        step()
