"""Backends for devices: on a GPU where there is one, and on the CPU's memory without one."""

import contextlib

import pytest
import torch

from radam_fused import backends, flat, optimizer
from radam_fused.backends import cpu, cuda, launches

from .host_grid import host_grid


class HostBackend:
    """A device backend that takes tensors in the CPU's memory, and whose graphs are recorded.

    Attributes:
        backend: The name of the backend.
        device: Where its tensors are.
        is_slow: Whether its kernels are executed from their PTX.
    """

    device = torch.device("cpu")
    is_slow = False

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        served = backends.BACKENDS[self.backend]._replace(
            unavailable=lambda: None, unsupported=cpu.unsupported
        )
        monkeypatch.setitem(backends.BACKENDS, self.backend, served)

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
                patch.setattr(backends, "is_capturing", lambda: True)
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
    """Let the backends use another module of the extension's surface, built without optimizing."""
    for user in (launches, cuda, cpu, optimizer, flat):
        monkeypatch.setattr(user, "_C", module)
    monkeypatch.setattr(cpu.CpuLaunch, "instruction_set", "baseline")


class CudaGrid(HostBackend):
    """The CUDA backend: every block and thread of its grid in loops."""

    backend = "cuda"

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.module = host_grid()
        use_extension(self.module, monkeypatch)

    def new_graph(self):
        return self.module.HostGraph()

    def launches(self):
        return self.module.launches()


class Gpu:
    """A backend as users have it, on a GPU."""

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


def triton_ptx(monkeypatch):
    pytest.importorskip("triton")
    from .ptx.triton import TritonPtx

    return TritonPtx(monkeypatch)


ENGINES = {
    "cuda-grid": CudaGrid,
    "triton-ptx": triton_ptx,
    "cuda-gpu": lambda monkeypatch: Gpu("cuda"),
    "triton-gpu": lambda monkeypatch: Gpu("triton"),
}
