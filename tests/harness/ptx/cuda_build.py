"""Builds the PTX of csrc/cuda, and the extension with kernels that call Python."""

import os
import re
import shutil
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pybind11
import pytest
import torch
from filelock import FileLock

from ..host_grid import ROOT, load
from .backend import ARCHITECTURE
from .stored import Stored

CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "ptx"
HOST_DEVICE = Path(__file__).parents[1] / "grid" / "device.cpp"

TYPES = {  # in the order of DType in csrc/scalar.h
    "double": torch.float64,
    "float": torch.float32,
    "BFloat16": torch.bfloat16,
    "Half": torch.float16,
}
# The formats of parameters: dtype and masters.
PARAMS = {name: (dtype, None) for name, dtype in TYPES.items()} | {
    "SplitBFloat16": (torch.bfloat16, "split"),
    "MasteredBFloat16": (torch.bfloat16, "float32"),
    "MasteredHalf": (torch.float16, "float32"),
}


def _build(commands, start):
    """Run commands, two at a time. Each key is the file that its command makes.

    The files are as old as `start`, so that a source which changes meanwhile is newer.
    """

    def one(item):
        target, command = item
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_name(f"{target.name}.{os.getpid()}")  # complete before it gets its name
        done = subprocess.run([*command, "-o", made], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        os.utime(made, (start, start))
        made.replace(target)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, commands.items()))


def _is_current(target, sources):
    return target.exists() and all(
        target.stat().st_mtime > source.stat().st_mtime for source in sources
    )


def _sources(*patterns):
    return [source for pattern in patterns for source in CSRC.glob(pattern)]


def _rounding():
    """The options for rounding of the build."""
    text = (ROOT / "cmake" / "cuda.cmake").read_text()
    return re.search(r"set\(RADAM_CUDA_ROUNDING (.*)", text)[1].split()


def compiled():
    """The PTX of csrc/cuda: one module per dtype of a parameter, and one for the other kernels."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    sources = _sources("*.h", "*.def", "cuda/*")
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "lock"):  # of the other workers
        return _compiled(sources)


def _compiled(sources):
    files = {name: BUILD / f"compute_{ARCHITECTURE}" / f"{name}.ptx" for name in (*PARAMS, "rest")}
    nvcc = ["nvcc", "-ptx", "-O3", "-std=c++17", f"-arch=compute_{ARCHITECTURE}", *_rounding()]
    _build(
        {
            file: [*nvcc, CSRC / "cuda" / "kernels.cu"]
            if name == "rest"
            else [*nvcc, CSRC / "cuda" / "step_kernels.cu", f"-DRADAM_PARAM={name}"]
            for name, file in files.items()
            if not _is_current(file, sources)
        },
        time.time(),
    )
    return [file.read_text() for file in files.values()]


def _plain(names):
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@cache
def texts():
    """The PTX of each kernel: step kernels by Stored, amsgrad and "tracked", others by name."""
    found = {}
    for module in compiled():
        head, *kernels = re.split(r"(?=^(?:\.visible )?\.entry )", module, flags=re.M)
        names = [re.search(r"\.entry\s+([\w$]+)", kernel)[1] for kernel in kernels]
        for name, kernel in zip(_plain(names), kernels, strict=True):
            pattern = r"(\w+)_kernel<(.+), (.+), (.+), (?:\(bool\))?(\w+), (?:\(bool\))?(\w+)>"
            if step := re.search(pattern, name):
                kind, *types, amsgrad, draws = step.groups()
                param, *others = (ty.rpartition(":")[2] for ty in types)
                dtype, master = PARAMS[param]
                drawn = ("some",) if draws in ("true", "1") else ()
                stored = Stored(dtype, *(TYPES[ty] for ty in others), master, drawn)
                key = stored, amsgrad in ("true", "1")
                found[key if kind == "step" else (*key, kind)] = head + kernel
            elif sums := re.search(r"sum_kernel<(.+)>", name):
                found["sum", TYPES[sums[1].rpartition(":")[2]]] = head + kernel
            else:
                found[re.search(r"(\w+)_kernel\(", name)[1]] = head + kernel
    return found


@cache
def extension():
    """The extension with kernels that call Python."""
    from radam_fused.extension import dense_copy

    where = BUILD / "grid"
    where.mkdir(parents=True, exist_ok=True)
    target = where / ("ptx_grid" + sysconfig.get_config_var("EXT_SUFFIX"))
    sources = [Path(__file__).parent / "host.cpp", HOST_DEVICE]
    sources += _sources("*.cpp", "cuda/*.cpp", "cpu/*.cpp")
    with FileLock(where / "lock"):  # of the other workers
        _build_extension(where, target, sources)
    return load("ptx_grid", target, dense_copy)


def _build_extension(where, target, sources):
    if not _is_current(target, [*sources, *_sources("*.h", "*.def", "*/*.h")]):
        flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fopenmp"]
        flags += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        flags += ["-DRADAM_MODULE=ptx_grid", '-DRADAM_CUDA="ptx"', "-DRADAM_BIND_MORE=bind_tests"]
        flags += ["-DRADAM_INLINE=inline", "-DRADAM_INSTRUCTION_SET=baseline"]
        flags += [f"-I{path}" for path in (CSRC, pybind11.get_include())]
        flags += [f"-I{sysconfig.get_path('include')}"]
        start = time.time()
        objects = {where / f"{s.parent.name}_{s.stem}.o": s for s in sources}
        _build({o: ["g++", *flags, "-c", source] for o, source in objects.items()}, start)
        _build({target: ["g++", "-shared", "-fopenmp", *objects]}, start)
