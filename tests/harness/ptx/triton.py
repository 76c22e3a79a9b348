"""The Triton backend, executed from the PTX that Triton compiles."""

import ctypes
import struct
import types
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from radam_fused.triton_kernels.compiled import CompiledKernels
from radam_fused.triton_kernels.upload import INDEX_ENTRIES
from triton.backends.compiler import GPUTarget

from .backend import ARCHITECTURE, PtxBackend
from .machine import PtxError
from .memory import Memory
from .stored import Stored
from .tables import (
    CLIP,
    COEFFICIENTS,
    TABLES,
    Span,
    add_arrays,
    add_clip,
    add_folds,
    add_gradients,
    index_of,
)

_STREAM = 4321
_BYTES = {tl.float64: 8, tl.float32: 4, tl.bfloat16: 2, tl.float16: 2}


class Pointer(NamedTuple):
    """The address of a tensor, which does not keep it alive."""

    address: int
    dtype: torch.dtype

    @classmethod
    def to(cls, tensor):
        return cls(tensor.data_ptr(), tensor.dtype)


class Driver:
    """A driver for Triton without a GPU: kernels are executed from their PTX.

    Args:
        device: The name under which Triton keeps what it loads, also for later drivers.
        backend: Whose launches they are.

    Attributes:
        launched: The names of the kernels that were launched.
        loaded: The kernels by their names, those that were last launched or only loaded.
    """

    def __init__(self, device, backend):
        self.launched, self.loaded = [], {}
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=lambda name, *_: (None, self._loading, 0, 0, 1024),  # no module to unload
        )
        self._device, self._backend = device, backend
        self._loading = ""

    def get_current_target(self):
        return GPUTarget("cuda", int(ARCHITECTURE), 32)

    def get_current_device(self):
        return self._device

    def get_current_stream(self, device):
        return _STREAM

    def read_ptx(self, module, function, name, files, hash):
        """The hook that Triton calls before it loads a kernel."""
        [path] = (path for file, path in files.items() if file.endswith(".ptx"))
        with open(path) as file:
            self._loading = file.read()

    def launcher_cls(self, source, metadata):
        constants = {index for (index,) in source.constants}
        names = source.fn.arg_names

        def launch(x, y, z, stream, ptx, packed, launch_metadata, enter, leave, *arguments):
            assert (y, z, stream) == (1, 1, _STREAM)
            given = dict(zip(names, arguments, strict=True))
            passed = [given[name] for i, name in enumerate(names) if i not in constants]
            # The driver of another test can have loaded the kernel.
            triton.runtime.driver.active.launch(ptx, metadata, x, given, passed)

        return launch

    def launch(self, ptx, metadata, programs, given, passed):
        """Enqueue a kernel; `passed` are the arguments that the compiled kernel takes."""
        kernel = self._backend.kernel_of(ptx, 32 * metadata.num_warps, metadata.shared)
        self.loaded[metadata.name] = kernel
        if programs == 0:  # like the launchers of Triton
            return
        self.launched.append(metadata.name)
        passed = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in passed]
        given = {k: Pointer.to(a) if isinstance(a, torch.Tensor) else a for k, a in given.items()}
        allow = getattr(self, f"_{metadata.name}")

        def run():
            memory = Memory()
            allow(memory, programs, **given)
            kernel.run(programs, pack(kernel, passed), memory)

        self._backend.stream.enqueue(run)

    def _step_kernel(
        self,
        memory,
        programs,
        segments,
        index,
        index_shift,
        coefficients,
        draws,
        sums,
        P,
        G,
        M,
        MASTER,
        AMSGRAD,
        DRAWS_PARAM,
        DRAWS_EXP_AVG_SQ,
        TRACKS,
        **_,
    ):
        workspaces = self._backend.workspaces
        count = (programs - 1 >> index_shift) + 2
        entries = workspaces.table(memory, "index", index.address, np.dtype("i4"), count)
        segments = workspaces.segments(memory, segments.address, int(entries[-1]) + 1)
        dtype = torch.float64 if tl.float64 == P else torch.float32
        workspaces.coefficients(memory, coefficients.address, segments, dtype)
        add_arrays(memory, segments, [_BYTES[ty] for ty in (P, G, M)], AMSGRAD, MASTER)
        if DRAWS_PARAM or DRAWS_EXP_AVG_SQ:
            workspaces.draws(memory, draws.address, len(segments))
        if TRACKS:
            workspaces.table(memory, "sums", sums.address, np.dtype("f8"), programs, True)

    def _sum_kernel(self, memory, programs, segments, index, index_shift, sums, G):
        workspaces = self._backend.workspaces
        count = (programs - 1 >> index_shift) + 2
        entries = workspaces.table(memory, "index", index.address, np.dtype("i4"), count)
        segments = workspaces.segments(memory, segments.address, int(entries[-1]) + 1)
        add_gradients(memory, segments, _BYTES[G])
        workspaces.table(memory, "sums", sums.address, np.dtype("f8"), programs, True)

    def _fold_kernel(self, memory, programs, numbers, rows, to, numel, HAS_ROWS):
        rows = rows.address if HAS_ROWS else 0
        given = numbers.address, rows, to.address, numel
        add_folds(memory, self._backend.workspaces, programs, *given)

    def _clip_kernel(
        self, memory, programs, square_sum, grad_scale, failed, state, HAS_SCALE, CAN_FAIL, **_
    ):
        scale, number = HAS_SCALE and grad_scale.address, CAN_FAIL and failed.address
        add_clip(memory, square_sum.address, scale, number, state.address)

    def _round_kernel(self, memory, programs, given, clip, coefficients):
        workspaces = self._backend.workspaces
        wide, narrow = COEFFICIENTS[torch.float64], COEFFICIENTS[coefficients.dtype]
        workspaces.table(memory, "given", given.address, wide, programs)
        workspaces.table(memory, "coefficients", coefficients.address, narrow, programs, True)
        memory.over_host("clip", clip.address, CLIP.itemsize, False)

    def _prologue_kernel(
        self, memory, programs, segments, device_options, coefficients, draws, S, DRAWS
    ):
        allow = self._backend.workspaces.allow_prologue
        at = (pointer.address for pointer in (segments, device_options, coefficients))
        drawn = draws.address if DRAWS else 0
        allow(memory, programs, *at, drawn, coefficients.dtype, _BYTES[S])


def pack(kernel, arguments):
    """The parameters in Triton's layout: the arguments, then addresses of scratch memory."""
    sizes = [size for _, size in kernel.program.kernel.params.values()]
    assert sizes == [8] * (len(arguments) + 2), sizes
    given = (struct.pack("d" if isinstance(a, float) else "Q", a) for a in (*arguments, 0, 0))
    return b"".join(given)


class Copy:
    """A copy in a graph, which keeps neither tensor alive."""

    def __init__(self, to, source):
        assert to.dtype == source.dtype
        assert to.is_contiguous()
        assert source.is_contiguous()
        self._to, self._source = Span(to), Span(source)
        assert self._to.size == self._source.size

    def __call__(self):
        for span in (self._to, self._source):
            if not span.is_alive():
                raise PtxError("a copy from or to memory that has been freed")
        ctypes.memmove(self._to.start, self._source.start, self._to.size)


class TritonPtx(PtxBackend):
    """The Triton backend, executed from the PTX that Triton compiles."""

    name = "triton"

    def __init__(self, monkeypatch, device="ptx"):
        super().__init__(monkeypatch)
        self.driver = Driver(device, self)
        monkeypatch.setattr(triton.runtime.driver, "_active", self.driver)
        hooks = triton.knobs.runtime
        monkeypatch.setattr(hooks, "kernel_load_start_hook", self.driver.read_ptx)
        copy_ = torch.Tensor.copy_

        def copy(to, source, non_blocking=False):
            if non_blocking:
                self.stream.enqueue(Copy(to, source))
                return to
            return copy_(to, source)

        monkeypatch.setattr(torch.Tensor, "copy_", copy)

    def step_kernel(self, dtypes, amsgrad):
        stored = Stored(*dtypes)
        CompiledKernels(self.device, stored[:3], amsgrad, None, stored.master, stored.draws)
        return self.driver.loaded["step_kernel"]

    def prologue_kernel(self, counter, dtype=torch.float32, draws=False):
        """The prologue kernel for a counter, and coefficients of an arithmetic type."""
        drawn = ["exp_avg_sq"] * draws
        CompiledKernels(self.device, [dtype] * 3, False, counter, None, drawn)
        return self.driver.loaded["prologue_kernel"]

    def run_step(self, memory, dtypes, amsgrad, segments, coefficients, grid, blocks, in_memory):
        """Run some programs of a step. The tables are always in memory."""
        index, shift = index_of(segments, grid, INDEX_ENTRIES)
        tables = {"segments": segments, "index": index, "coefficients": coefficients}
        for name, rows in tables.items():
            memory.allocate(name, TABLES[name], rows, False)
        kernel = self.step_kernel(dtypes, amsgrad)
        at = TABLES["coefficients"]
        given = TABLES["segments"], TABLES["index"], shift, at, at, at  # the last two are not used
        kernel.run(grid, pack(kernel, given), memory, blocks)

    def run_prologue(self, memory, count, counter, dtype, *tables):
        """Run a prologue over tables in memory, for coefficients of an arithmetic type."""
        draws = len(tables) == 4
        kernel = self.prologue_kernel(counter, dtype, draws)
        kernel.run(count, pack(kernel, tables if draws else (*tables, 0)), memory)
