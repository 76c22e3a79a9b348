"""The device backends under test: on a GPU if there is one, and on CPU memory without one."""

import contextlib
import os

import pytest
import torch

from radam_fused import backends, flat, plan
from radam_fused.backends import cpu, cuda, launches

from .host_grid import host_grid

# Whether torch.cuda is a stand-in (tests/harness/rehearsal), which has no memory of its own.
IS_REHEARSAL = "RADAM_REHEARSAL" in os.environ


class HostBackend:
    """A device backend that works on CPU tensors and records graphs.

    Attributes:
        name: The name of the backend.
        device: The device of its tensors.
        is_slow: Whether its kernels are executed from their PTX.
    """

    device = torch.device("cpu")
    is_slow = False

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        served = backends.BACKENDS[self.name]._replace(
            unavailable=lambda: None, unsupported=cpu.unsupported
        )
        monkeypatch.setitem(backends.BACKENDS, self.name, served)

    @contextlib.contextmanager
    def capture(self, graph):
        make = launches.Workspace.make
        kept = self._memory_of[graph] = []

        def from_the_pool_of_the_graph(workspace, size):
            kept.append(make(workspace, size))
            return kept[-1]

        graph.begin()
        try:
            with self._monkeypatch.context() as patch:
                for module in (backends, launches):
                    patch.setattr(module, "is_capturing", lambda device: True)
                patch.setattr(launches.Workspace, "make", from_the_pool_of_the_graph)
                yield
        finally:
            graph.end()

    @property
    def _memory_of(self):
        return self.__dict__.setdefault("_memory", {})

    def synchronize(self):
        pass


def use_extension(module, monkeypatch):
    """Make the backends use another build of the extension."""
    for user in (launches, cuda, cpu, plan, flat):
        monkeypatch.setattr(user, "_C", module)
    monkeypatch.setattr(cpu.CpuLaunch, "instruction_set", "baseline")


class CudaGrid(HostBackend):
    """The CUDA backend on the host: a loop runs every block and thread of its grid."""

    name = "cuda"

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.module = host_grid()
        use_extension(self.module, monkeypatch)

    def new_graph(self):
        return self.module.HostGraph()

    def launches(self):
        return self.module.launches()


class Gpu:
    """A backend on a GPU, unchanged."""

    device = torch.device("cpu" if IS_REHEARSAL else "cuda:0")

    def __init__(self, name):
        self.is_slow = IS_REHEARSAL
        reason = backends.BACKENDS[name].unavailable()
        if reason is not None:
            pytest.skip(reason)
        self.name = name

    def new_graph(self):
        return torch.cuda.CUDAGraph()

    def capture(self, graph):
        return torch.cuda.graph(graph)

    def synchronize(self):
        torch.cuda.synchronize()


def cuda_ptx(monkeypatch):
    from .ptx.cuda import CudaPtx

    return CudaPtx(monkeypatch)


def triton_ptx(monkeypatch):
    pytest.importorskip("triton")
    from .ptx.triton import TritonPtx

    return TritonPtx(monkeypatch)


DEVICE_BACKENDS = {
    "cuda-grid": CudaGrid,
    "triton-ptx": triton_ptx,
    "cuda-gpu": lambda monkeypatch: Gpu("cuda"),
    "triton-gpu": lambda monkeypatch: Gpu("triton"),
}
