"""The CUDA engine as the tests run it: on a GPU, and its grid in loops on the host."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from radam_fused import backends, optimizer
from radam_fused.backends import cuda

ROOT = Path(__file__).parents[1]


def with_tools(**more):
    """The environment, with the tools that lie beside this Python."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
    return os.environ | {"PATH": path} | more


@cache
def host_grid():
    """The extension over the host's engine, built on first use unless RADAM_HOST_GRID names it."""
    path = os.environ.get("RADAM_HOST_GRID")
    if path is None:
        import pybind11

        build = ROOT / "build" / "host_grid" / f"{sys.implementation.cache_tag}"
        configure = ["cmake", "-S", ROOT, "-B", build, "-GNinja", "-DRADAM_FUSED_CUDA=OFF"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        for command in (configure, ["cmake", "--build", build, "--target", "host_grid"]):
            done = subprocess.run(command, capture_output=True, text=True, env=with_tools())
            assert done.returncode == 0, done.stdout + done.stderr
        [path] = (build / "tests" / "grid").glob("host_grid*.so")
    spec = importlib.util.spec_from_file_location("host_grid", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.connect()
    return module


class HostGrid:
    """backend="cuda" takes tensors in the CPU's memory, and a graph is a list of launches."""

    device = torch.device("cpu")

    def __init__(self, monkeypatch):
        self.module = host_grid()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(cuda, "_C", self.module)
        monkeypatch.setattr(cuda, "_current_stream", lambda device: 0)
        monkeypatch.setattr(cuda, "_current_device", lambda device: contextlib.nullcontext())
        served = cuda.BACKEND._replace(unavailable=lambda: None, refuses=backends.cpu._refuses)
        monkeypatch.setitem(backends.BACKENDS, "cuda", served)

    def new_graph(self):
        return self.module.HostGraph()

    @contextlib.contextmanager
    def capture(self, graph):
        graph.begin()
        try:
            with self._monkeypatch.context() as patch:
                patch.setattr(optimizer, "_is_capturing", lambda: True)
                yield
        finally:
            graph.end()

    def synchronize(self):
        pass


class Gpu:
    """The engine as users have it."""

    device = torch.device("cuda", 0)

    def new_graph(self):
        return torch.cuda.CUDAGraph()

    def capture(self, graph):
        return torch.cuda.graph(graph)

    def synchronize(self):
        torch.cuda.synchronize()


def gpu_is_missing():
    """Why the engine does not run on a GPU here, or None."""
    return cuda.BACKEND.unavailable()
