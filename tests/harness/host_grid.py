"""The extension with the CUDA grid on the host (tests/harness/grid)."""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock  # torch needs it too

ROOT = Path(__file__).parents[2]


def with_tools(**more):
    """The environment, with the tools of this Python on PATH."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
    return os.environ | {"PATH": path} | more


def load(name, path, connect):
    """Load a build of the extension from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.connect(connect)
    return module


@cache
def host_grid():
    """The extension with the host grid. Builds it unless RADAM_HOST_GRID names a file."""
    from radam_fused.extension import dense_copy

    path = os.environ.get("RADAM_HOST_GRID")
    if path is None:
        import pybind11

        build = ROOT / "build" / "host_grid" / f"{sys.implementation.cache_tag}"
        configure = ["cmake", "-S", ROOT, "-B", build, "-GNinja", "-DRADAM_FUSED_CUDA=OFF"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        build.mkdir(parents=True, exist_ok=True)
        with FileLock(build / "lock"):  # of the other workers
            for command in (configure, ["cmake", "--build", build, "--target", "host_grid"]):
                done = subprocess.run(command, capture_output=True, text=True, env=with_tools())
                assert done.returncode == 0, done.stdout + done.stderr
        [path] = (build / "tests" / "harness" / "grid").glob("host_grid*.so")
    return load("host_grid", path, dense_copy)
