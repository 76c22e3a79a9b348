"""Builds of the CUDA backend with other compiler options, to time them against the one in use."""

import importlib.util
import re
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from radam_fused import extension, plan
from radam_fused.backends import cuda, launches
from radam_fused.benchmark.timing import Step

from .bandwidth_limit import BUILD
from .machine import ROOT, find_tool


class Variant(NamedTuple):
    """A build.

    Attributes:
        name: Its name.
        constants: Macros of csrc/cuda/grid.h, as in "RADAM_THREADS=64".
        rounding: nvcc's options for rounding; empty: those of the backend.
    """

    name: str
    constants: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the build."""
        return BUILD / re.sub(r"\W+", "-", self.name)


ROUGHLY = Variant(
    "roughly", rounding=("--fmad=true", "--prec-div=false", "--prec-sqrt=false", "--ftz=true")
)


def library(variant: Variant) -> str:
    """The path of a build, which is made once.

    Raises:
        RuntimeError: It cannot be built; the message ends with the output of the build.
    """
    build = variant.folder
    target = build / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists():
        return str(target)
    import pybind11

    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-GNinja", "-DRADAM_FUSED_CUDA=1"]
    configure += [f"-DCMAKE_CUDA_COMPILER={find_tool('nvcc')}"]
    configure += [f"-DRADAM_CUDA_CONSTANTS={';'.join(variant.constants)}"]
    if variant.rounding:
        configure += [f"-DRADAM_CUDA_ROUNDING={';'.join(variant.rounding)}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(build), "--target", "_C"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"cannot build {build}: {(done.stdout + done.stderr)[-2000:]}")
    return str(target)


@cache
def module(variant: Variant) -> Any:
    """The extension of a build."""
    spec = importlib.util.spec_from_file_location("_C", library(variant))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.connect(extension.dense_copy)
    return loaded


def take_first_step(step: Step, variant: Variant) -> None:
    """Take the first step of an optimizer with another build, which its launches then keep."""
    with ExitStack() as patches:
        for user in (cuda, launches, plan):
            patches.enter_context(mock.patch.object(user, "_C", module(variant)))
        step()
