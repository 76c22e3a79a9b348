"""The build of the CUDA backend, and the machine code of its kernels."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pybind11
import pytest

import radam_fused
from radam_fused.backends.cuda import architectures

from .harness.host_grid import with_tools

pytestmark = pytest.mark.slow

ROOT = Path(radam_fused.__file__).parents[1]
CUDA_WANTED = shutil.which("nvcc") and os.environ.get("RADAM_FUSED_CUDA", "AUTO") == "AUTO"

SIZES = {"double": 8, "float": 4, "radam::BFloat16": 2, "radam::Half": 2}
# The sizes of a parameter and of its master.
PARAMS = {name: (size, 0) for name, size in SIZES.items()} | {
    "radam::cuda::SplitBFloat16": (2, 2),
    "radam::cuda::MasteredBFloat16": (2, 4),
    "radam::cuda::MasteredHalf": (2, 4),
}


@cache
def cuobjdump(*options):
    """The output of cuobjdump, which comes with triton, for the extension."""
    triton = find_spec("triton")
    tool = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool:
        pytest.skip("triton, which brings cuobjdump, is not installed")
    [library] = Path(radam_fused.__file__).parent.glob("_C.*.so")
    done = subprocess.run([tool, *options, library], capture_output=True, text=True, check=True)
    return subprocess.run(["c++filt"], input=done.stdout, capture_output=True, text=True).stdout


KERNELS = (6 + 13) * 4 * 2

needs_cuda = pytest.mark.skipif(architectures() is None, reason="built without CUDA")
needs_compiler = pytest.mark.skipif(not CUDA_WANTED, reason="no nvcc")


def test_the_backend_is_built_if_there_is_a_compiler():
    assert not CUDA_WANTED or architectures()


def kernel_types(text):
    """(parameter, gradient, moment, amsgrad, draws) of a step kernel in a line, or None."""
    flag = r"(?:\(bool\))?(\w+)"
    found = re.search(rf"step_kernel<(\S+), (\S+), (\S+), {flag}, {flag}>", text)
    return found and (*found.groups()[:3], *(found[i] in ("true", "1") for i in (4, 5)))


def blocks_of(types):
    """The blocks of a step kernel that a multiprocessor can hold at least."""
    param, grad, _, _, draws = types
    if param == "double":
        return 3
    if draws:
        return 3 if grad == "double" else 4
    if grad == "double":
        return 5 if param in SIZES else 4
    return 5 if "Mastered" in param else 6


def kernels_by_architecture():
    result, architecture = defaultdict(dict), ""
    for line in cuobjdump("-res-usage").splitlines():
        if line.startswith("arch ="):
            architecture = line.split()[-1]
        elif "Function" in line:
            name = line
        elif "REG:" in line:
            result[architecture][name] = {
                key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)
            }
    return result


@needs_cuda
def test_every_combination_of_dtypes_has_a_kernel_without_spills():
    found = kernels_by_architecture()
    assert len(found) == len([a for a in architectures().split() if not a.endswith("virtual")])
    for architecture, kernels in found.items():
        steps = Counter(kernel_types(name) for name in kernels)
        # 6 formats of parameters and moments, 13 with masters or stochastic rounding; each for four
        # gradient dtypes, with and without amsgrad.
        assert len([types for types in steps if types]) == KERNELS, architecture
        for name, usage in kernels.items():
            assert usage["STACK"] == usage["LOCAL"] == 0, (architecture, name)
            shares = re.search(r"\b(?:tracked|sum|fold)_kernel\b", name) is not None
            assert (usage["SHARED"] > 0) == shares, (architecture, name)
            if types := kernel_types(name):
                blocks = blocks_of(types)
                assert usage["REG"] <= 65536 // (128 * blocks), (architecture, name)


@needs_cuda
@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_accesses_are_128_bits_wide_and_none_is_generic(which):
    architecture = [a for a in architectures().split() if not a.endswith("virtual")][which]
    accesses, types = defaultdict(Counter), None
    for line in cuobjdump("-sass", "-arch", f"sm_{architecture.split('-')[0]}").splitlines():
        if "Function :" in line:
            types = kernel_types(line)
        elif types:
            assert not re.search(r"\b(LDL|STL|LD|ST)\b", line), (types, line)
            if found := re.search(r"\b(LDG|STG)\.E[.\w]*?\.(128|256)\b", line):
                accesses[types][found[1]] += int(found[2]) // 128
    assert len(accesses) == KERNELS
    for (param, grad, moment, amsgrad, draws), counted in accesses.items():
        (p, master), g, m = PARAMS[param], SIZES[grad], SIZES[moment]
        width = 16 // min(p, g, m)
        packs = max(1, (4 if 8 in (p, g) else 8) // width)
        p += master
        moments = 3 if amsgrad else 2
        # The words of a segment's addresses, of its coefficients, and of its random bits.
        table = (3 if amsgrad else 2) + (3 if param == "double" else 2) + (2 if draws else 0)
        loads = packs * width * (p + g + m * moments) // 16 + table
        stores = packs * width * (p + m * moments) // 16
        assert counted == {"LDG": loads, "STG": stores}, (param, grad, moment, amsgrad, draws)


@needs_cuda
def test_no_operation_is_contracted():
    if "virtual" not in architectures():
        pytest.skip("built without PTX")
    arithmetic = re.findall(r"\b(\w+)((?:\.\w+)*)\.f(?:32|64)\b", cuobjdump("-ptx"))
    assert not {(name, how) for name, how in arithmetic if name in ("fma", "mad")}
    for name in ("add", "sub", "mul", "div", "sqrt"):
        assert {how for other, how in arithmetic if other == name} == {".rn"}, name


def configure(tmp_path, *options, **environment):
    command = ["cmake", "-S", ROOT, "-B", tmp_path, "-GNinja", *options]
    command += [f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    kept = with_tools(**environment)
    for name in {"CUDAARCHS", "TORCH_CUDA_ARCH_LIST"} - set(environment):
        kept.pop(name, None)
    return subprocess.run(command, capture_output=True, text=True, env=kept)


def test_cuda_configured_off_needs_no_compiler(tmp_path):
    done = configure(tmp_path, "-DRADAM_FUSED_CUDA=0")
    assert done.returncode == 0
    assert "without the CUDA backend" in done.stdout


def test_cuda_configured_on_without_a_compiler_is_an_error(tmp_path):
    done = configure(tmp_path, "-DRADAM_FUSED_CUDA=1", CUDACXX="/nowhere/nvcc")
    assert done.returncode != 0
    assert "CUDA" in done.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCH_CUDA_ARCH_LIST": "8.6;9.0a 10.0+PTX"}, "86-real 90a-real 100-real 100-virtual"),
        ({"CUDAARCHS": "89-real"}, "89-real"),
    ],
    ids=str,
)
def test_configured_architectures(environment, expected, tmp_path):
    done = configure(tmp_path, **environment)
    assert f"the CUDA backend for {expected}, CUDA" in done.stdout, done.stderr


@needs_compiler
def test_an_unknown_configured_architecture_is_an_error(tmp_path):
    done = configure(tmp_path, TORCH_CUDA_ARCH_LIST="Hopper")
    assert "expected numbers such as 9.0, not Hopper" in " ".join(done.stderr.split())
