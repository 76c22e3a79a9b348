"""The CUDA backend, executed from its PTX."""

from functools import partial

import numpy as np
import torch

from radam_fused.state import ROLES

from ..backends import use_extension
from . import cuda_build
from .backend import PtxBackend
from .memory import Memory
from .stored import Stored
from .tables import (
    CLIP,
    COEFFICIENTS,
    SEGMENT,
    TABLES,
    add_arrays,
    add_clip,
    add_folds,
    add_gradients,
    arithmetic,
    index_of,
)

_THREADS = 128

# The kernel arguments of csrc/cuda/grid.h.
FEW_COEFFICIENTS_BYTES = 256
FEW_SEGMENTS = (4096 - 48 - FEW_COEFFICIENTS_BYTES) // SEGMENT.itemsize
STEP = np.dtype(
    [
        *(("segments", "u8"), ("coefficients", "u8"), ("num_segments", "i8")),
        *(("index_shift", "i4"), ("index_scale", "i4"), ("sums", "u8"), ("draws", "u8")),
        ("few_segments", SEGMENT, FEW_SEGMENTS),  # or the index
        ("few_coefficients", "u1", FEW_COEFFICIENTS_BYTES),
    ]
)
INDEX_ENTRIES = STEP["few_segments"].itemsize // 2
UPLOAD = np.dtype([("to", "u8"), ("num_words", "i8"), ("words", "u8", (32764 - 16) // 8)])
PROLOGUE = np.dtype(
    [
        *(("segments", "u8"), ("num_segments", "i8"), ("options", "u8"), ("coefficients", "u8")),
        *(
            ("draws", "u8"),
            ("step_is_float64", "?"),
            ("arithmetic_is_float64", "?"),
            ("padding", "u1", 6),
        ),
    ]
)
# The kernel arguments of csrc/cuda/sums.h.
FOLD = np.dtype([("from", "u8"), ("rows", "u8"), ("to", "u8"), ("numel", "i8")])
CLIP_ARGUMENTS = np.dtype(
    [
        *((name, "u8") for name in ("square_sum", "grad_scale", "failed")),
        *((name, "f8") for name in ("max_norm", "skip_above", "skips_nonfinite")),
        ("state", "u8"),
    ]
)
ROUND = np.dtype(
    [
        *((name, "u8") for name in ("given", "clip", "coefficients")),
        *(("num_rows", "i8"), ("arithmetic_is_float64", "?"), ("padding", "u1", 7)),
    ]
)


class CudaPtx(PtxBackend):
    """The CUDA backend, executed from the PTX that nvcc compiles."""

    name = "cuda"

    def __init__(self, monkeypatch):
        self._texts = cuda_build.texts()
        super().__init__(monkeypatch)
        module = cuda_build.extension()
        use_extension(module, monkeypatch)
        module.set_launcher(self._enqueue)

    def step_kernel(self, dtypes, amsgrad, tracked=False):
        stored = Stored(*dtypes).kernel
        name = (stored, amsgrad, "tracked") if tracked else (stored, amsgrad)
        return self.kernel_of(self._texts[name], _THREADS)

    def prologue_kernel(self, counter, dtype=None, draws=False):
        """The prologue kernel, which serves both dtypes of counters and of coefficients."""
        return self.kernel_of(self._texts["prologue"], _THREADS)

    def upload_kernel(self):
        return self.kernel_of(self._texts["upload"], _THREADS)

    def run_step(self, memory, dtypes, amsgrad, segments, coefficients, grid, blocks, in_memory):
        """Run some blocks of a step. Small tables are passed in the arguments unless in_memory."""
        arguments = np.frombuffer(bytearray(b"\xee" * STEP.itemsize), STEP)
        arguments["num_segments"], arguments["draws"] = len(segments), 0
        tables = {"segments": segments, "coefficients": coefficients}
        few = {name: arguments[0][f"few_{name}"].reshape(-1).view("u1") for name in tables}
        for name, rows in tables.items():
            if in_memory or rows.nbytes > few[name].nbytes:
                arguments[name] = TABLES[name]
                memory.allocate(name, TABLES[name], rows, False)
            else:
                arguments[name] = 0
                few[name][: rows.nbytes] = rows.view("u1")
        if arguments["segments"]:
            scale = max(0, (len(segments) - 1).bit_length() - 16)
            entries, arguments["index_shift"] = index_of(segments, grid, INDEX_ENTRIES)
            entries, arguments["index_scale"] = (entries >> scale).astype(np.uint16), scale
            few["segments"][: entries.nbytes] = entries.view("u1")
        kernel = self.step_kernel(dtypes, amsgrad)
        kernel.run(grid, arguments.tobytes(), memory, blocks)

    def run_prologue(self, memory, count, counter, dtype, segments, options, coefficients, draws=0):
        """Run a prologue over tables in memory, for coefficients of an arithmetic type."""
        wide = counter == torch.float64, dtype == torch.float64
        given = segments, count, options, coefficients, draws, *wide, 0
        arguments = np.array([given], PROLOGUE).tobytes()
        self.prologue_kernel(counter).run(-(-count // _THREADS), arguments, memory)

    def _enqueue(self, kernel, arguments, blocks, types, has, draws):
        launch = getattr(self, f"_{kernel}")
        if kernel in ("step", "sum"):
            has = dict(zip(ROLES, has, strict=True))
            master = "float32" if has["master_param"] else None
            master = "split" if has["param_remainder"] else master
            draws = ("some",) if draws else ()
            stored = Stored(*(list(cuda_build.TYPES.values())[ty] for ty in types), master, draws)
            launch = partial(launch, stored, *[has["max_exp_avg_sq"]] * (kernel == "step"))
        self.stream.enqueue(partial(launch, blocks, arguments))

    def _step(self, dtypes, amsgrad, blocks, arguments):
        [given] = np.frombuffer(arguments, STEP)
        memory = Memory()
        segments = self._segments(memory, given)
        if at := int(given["coefficients"]):
            self.workspaces.coefficients(memory, at, segments, arithmetic(dtypes[0]))
        sizes = [dtype.itemsize for dtype in dtypes[:3]]
        add_arrays(memory, segments, sizes, amsgrad, dtypes.master)
        if at := int(given["draws"]):
            self.workspaces.draws(memory, at, len(segments))
        tracked = bool(given["sums"])
        if tracked:
            self._add_sums(memory, given, blocks)
        self.step_kernel(dtypes, amsgrad, tracked).run(blocks, arguments, memory)

    def _segments(self, memory, table):
        """The segments of StepArguments."""
        num_segments = int(table["num_segments"])
        if at := int(table["segments"]):
            return self.workspaces.segments(memory, at, num_segments)
        return table["few_segments"][:num_segments]

    def _sum(self, dtypes, blocks, arguments):
        [given] = np.frombuffer(arguments, STEP)
        memory = Memory()
        add_gradients(memory, self._segments(memory, given), dtypes[1].itemsize)
        self._add_sums(memory, given, blocks)
        self.sum_kernel(dtypes[1]).run(blocks, arguments, memory)

    def _add_sums(self, memory, given, blocks):
        at = int(given["sums"])
        self.workspaces.table(memory, "sums", at, np.dtype("f8"), blocks, True)

    def sum_kernel(self, dtype):
        """The kernel that sums the squares of gradients."""
        return self.kernel_of(self._texts["sum", dtype], _THREADS)

    def norm_kernel(self, name):
        """A kernel that works on sums: fold, clip or round."""
        return self.kernel_of(self._texts[name], 1 if name == "clip" else _THREADS)

    def _fold(self, blocks, arguments):
        [given] = np.frombuffer(arguments, FOLD)
        memory = Memory()
        add_folds(memory, self.workspaces, blocks, *map(int, given))
        self.norm_kernel("fold").run(blocks, arguments, memory)

    def _clip(self, blocks, arguments):
        [given] = np.frombuffer(arguments, CLIP_ARGUMENTS)
        memory = Memory()
        names = "square_sum", "grad_scale", "failed", "state"
        add_clip(memory, *(int(given[name]) for name in names))
        self.norm_kernel("clip").run(blocks, arguments, memory)

    def _round(self, blocks, arguments):
        [given] = np.frombuffer(arguments, ROUND)
        memory, rows = Memory(), int(given["num_rows"])
        dtype = torch.float64 if given["arithmetic_is_float64"] else torch.float32
        wide, narrow = COEFFICIENTS[torch.float64], COEFFICIENTS[dtype]
        self.workspaces.table(memory, "given", int(given["given"]), wide, rows)
        at = int(given["coefficients"])
        self.workspaces.table(memory, "coefficients", at, narrow, rows, True)
        memory.over_host("clip", int(given["clip"]), CLIP.itemsize, False)
        self.norm_kernel("round").run(blocks, arguments, memory)

    def _upload(self, blocks, arguments):
        [given] = np.frombuffer(arguments, UPLOAD)
        memory, words = Memory(), np.dtype("u8")
        self.workspaces.table(
            memory, "words", int(given["to"]), words, int(given["num_words"]), True
        )
        self.upload_kernel().run(blocks, arguments, memory)

    def _prologue(self, blocks, arguments):
        [given] = np.frombuffer(arguments, PROLOGUE)
        memory, types = Memory(), (torch.float32, torch.float64)
        counter = types[int(given["step_is_float64"])]
        dtype = types[int(given["arithmetic_is_float64"])]
        names = "segments", "options", "coefficients", "draws"
        tables = (int(given[name]) for name in names)
        self.workspaces.allow_prologue(
            memory, int(given["num_segments"]), *tables, dtype, counter.itemsize
        )
        self.prologue_kernel(counter).run(blocks, arguments, memory)
