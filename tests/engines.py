"""The engines for devices as the tests run them: on a GPU, and on the host."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import weakref
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from radam_fused import backends, optimizer
from radam_fused.backends import cuda, device, triton

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


@cache
def interpreted_kernels():
    """The module that launches the Triton kernels, imported anew as TRITON_INTERPRET has it."""
    package = "radam_fused.triton_kernels"
    compiled = {name: sys.modules.pop(name) for name in list(sys.modules) if package in name}
    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        launch = importlib.import_module(f"{package}.launch")
    for name in [name for name in sys.modules if package in name]:
        del sys.modules[name]
    sys.modules.update(compiled)
    return launch


class HostEngine:
    """An engine that takes tensors in the CPU's memory, and whose graphs are lists of launches."""

    device = torch.device("cpu")
    is_slow = False

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self._captured = None
        monkeypatch.setattr(device, "watch_capture", self._watch)

    def _watch(self, stream):
        captured = self._captured
        if captured is None:
            return None
        graph = weakref.ref(captured)

        class Watched:
            is_alive = property(lambda self: graph() is not None)

        return Watched()

    @contextlib.contextmanager
    def capture(self, graph):
        graph.begin()
        self._captured = graph
        try:
            with self._monkeypatch.context() as patch:
                patch.setattr(optimizer, "_is_capturing", lambda: True)
                yield
        finally:
            self._captured = None
            graph.end()

    def synchronize(self):
        pass


class CudaGrid(HostEngine):
    """The CUDA engine: every block and thread of its grid in loops."""

    backend = "cuda"

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.module = host_grid()
        monkeypatch.setattr(cuda, "_C", self.module)
        served = cuda.BACKEND._replace(unavailable=lambda: None, refuses=backends.cpu._refuses)
        monkeypatch.setitem(backends.BACKENDS, "cuda", served)

    def new_graph(self):
        return self.module.HostGraph()

    def launches(self):
        return self.module.launches()


class RecordedLaunches:
    """As torch.cuda.CUDAGraph."""

    def __init__(self):
        self.is_open = False
        self.launches = []

    def begin(self):
        self.is_open = True

    def end(self):
        self.is_open = False

    def replay(self):
        for launch in self.launches:
            launch()


class TritonInterpreter(HostEngine):
    """The Triton engine under TRITON_INTERPRET."""

    backend = "triton"
    is_slow = True

    def __init__(self, monkeypatch):
        pytest.importorskip("triton")
        super().__init__(monkeypatch)
        self.kernels = interpreted_kernels()
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(triton, "_module", lambda: self.kernels)
        monkeypatch.setattr(triton, "_unloadable", lambda: None)
        repair_interpreter(monkeypatch)
        self._count = 0
        run = self.kernels._Kernel.__call__

        def run_quietly(kernel, *arguments):
            with np.errstate(all="ignore"):  # NumPy warns where a GPU does not
                run(kernel, *arguments)

        def enqueue(kernel, *arguments):
            self._count += 1
            if self._captured is None:
                run_quietly(kernel, *arguments)
            else:
                self._captured.launches.append(partial(run_quietly, kernel, *arguments))

        monkeypatch.setattr(self.kernels._Kernel, "__call__", enqueue)

    def new_graph(self):
        return RecordedLaunches()

    def launches(self):
        return self._count


def repair_interpreter(monkeypatch):
    """Make Triton's interpreter take bfloat16 as its compiler does, and waste less time.

    test_triton_interpreter.py shows what it does without.
    """
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def exact(values, from_type, to_type, rounding_mode):
        types = (from_type.name, to_type.name)
        if types == ("fp32", "bf16"):
            numbers = torch.from_numpy(np.array(values, dtype=np.float32)).bfloat16()
            return numbers.view(torch.int16).numpy().view(np.uint16)
        if types == ("bf16", "fp32"):
            return values.astype(np.uint32) << 16
        return convert(values, from_type, to_type, rounding_mode)

    monkeypatch.setattr(interpreter, "_convert_float", exact)

    def checked(handle, name, values):
        # To the interpreter it is only a promise; where it is broken, a GPU stops.
        if name == "tt.divisibility":
            assert (handle.data % np.uint64(values[0]) == 0).all(), "not aligned as promised"

    monkeypatch.setattr(interpreter.TensorHandle, "set_attr", checked)
    # It replaces triton.language at every call of a function within a kernel, as it has already.
    monkeypatch.setattr(
        interpreter.InterpretedFunction,
        "__call__",
        lambda function, *arguments, **options: function.rewrite()(*arguments, **options),
    )


class Gpu:
    """An engine as users have it, on a GPU."""

    device = torch.device("cuda", 0)
    is_slow = False

    def __init__(self, backend):
        reason = backends.BACKENDS[backend].unavailable()
        if reason is not None:
            pytest.skip(reason)
        self.backend = backend

    def new_graph(self):
        return torch.cuda.CUDAGraph()

    def capture(self, graph):
        return torch.cuda.graph(graph)

    def synchronize(self):
        torch.cuda.synchronize()


ENGINES = {
    "cuda-grid": CudaGrid,
    "triton-interpreter": TritonInterpreter,
    "cuda-gpu": lambda monkeypatch: Gpu("cuda"),
    "triton-gpu": lambda monkeypatch: Gpu("triton"),
}
