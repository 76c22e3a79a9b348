"""The base of the backends whose kernels are executed from PTX."""

import os

from radam_fused.backends.launches import Workspace

from ..backends import HostBackend
from .kernel import Kernel, program_of
from .stream import Graph, Stream
from .tables import Workspaces

ARCHITECTURE = os.environ.get("RADAM_PTX_ARCH", "90")  # the compute capability to compile for


class PtxBackend(HostBackend):
    """A device backend whose PTX is executed on the CPU, on CPU tensors.

    Attributes:
        stream: The stream that kernels are enqueued on.
        workspaces: The memory that may hold their tables.
        changed: Maps PTX to the PTX that is executed instead of it.
    """

    is_slow = True

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.stream, self.workspaces, self.changed = Stream(), Workspaces(), {}
        make = Workspace.make

        def noted(workspace, size):
            memory = make(workspace, size)
            self.workspaces.note(memory)
            return memory

        monkeypatch.setattr(Workspace, "make", noted)

    def new_graph(self):
        return Graph(self.stream)

    def free_memory_of(self, graph):
        """Free the workspaces that a graph uses, as if too early."""
        self._memory_of.pop(graph).clear()

    def launches(self):
        return self.stream.count

    def kernel_of(self, text, threads, shared_bytes=0):
        changed = self.changed.get(text, text)
        return Kernel(text, program_of(changed), threads, shared_bytes)
