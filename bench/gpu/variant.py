"""The CUDA backend built to contract and to divide roughly: what the same bits cost."""

import importlib.util
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest import mock

from radam_fused import FusedRAdam, extension, optimizer
from radam_fused.backends import cuda, launches

from ..limit import BUILD, SOURCE

ROUGHLY = ["--fmad=true", "--prec-div=false", "--prec-sqrt=false", "--ftz=true"]


BUILT = BUILD / "roughly"


def build() -> None:
    """Build it, once for all cases."""
    import pybind11

    configure = ["cmake", "-S", str(SOURCE.parents[1]), "-B", str(BUILT), "-GNinja"]
    configure += ["-DRADAM_FUSED_CUDA=1", f"-DRADAM_CUDA_ROUNDING={';'.join(ROUGHLY)}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(BUILT), "--target", "_C"]):
        subprocess.run(command, check=True, capture_output=True)


@cache
def _module() -> Any:
    [path] = BUILT.glob("_C.*.so")
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.connect(extension.dense_copy)
    return module


def prepare(instance: FusedRAdam) -> None:
    """Take the first step with the other build, which the launches then keep."""
    with ExitStack() as patches:
        for user in (cuda, launches, optimizer):
            patches.enter_context(mock.patch.object(user, "_C", _module()))
        instance.step()
