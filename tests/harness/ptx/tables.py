"""The tables of csrc/segments.h that a launch reads, and the memory that it may access."""

import ctypes

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from radam_fused.options import OPTION_NAMES
from radam_fused.rectification import Coefficients
from radam_fused.state import ROLES

from .machine import PtxError

SEGMENT = np.dtype(
    [(role, "u8") for role in ROLES]
    + [(name, "i8") for name in ("numel", "first", "coefficients", "options")]
)


def _coefficients(number, padding):
    fields = [(name, number) for name in Coefficients._fields[:-1]]
    return np.dtype([*fields, ("update", "i4"), *padding])


# A row of StepCoefficients, by its arithmetic type.
COEFFICIENTS = {
    torch.float32: _coefficients("f4", []),
    torch.float64: _coefficients("f8", [("padding", "i4")]),
}
OPTIONS = np.dtype(
    [(name, "f8") for name in OPTION_NAMES]
    + [
        ("lr_at", "u8"),
        ("lr_is_float64", "i8"),
        ("grad_scale_at", "u8"),
        ("found_inf_at", "u8"),
        ("clip_at", "u8"),
    ]
)

# A row of Draw in csrc/random.h.
DRAW = np.dtype(
    [
        *((name, "u8") for name in ("key", "step_key")),
        *((name, "i8") for name in ("offset", "run", "stride")),
        ("roles", "u8"),
    ]
)

FOLD_ROW = np.dtype([("first", "i8"), ("numel", "i8"), ("to", "i8")])
CLIP = np.dtype([("norm", "f8"), ("coefficient", "f8"), ("skips", "f8")])
CLIP_STATE = np.dtype([("clip", CLIP), ("skipped", "f8")])

CHUNK = 1024  # elements per block

# Addresses of tables that the tests make.
TABLES = {"segments": 0x7FFF_0000_0040, "options": 0x7FFF_1000_0018}
TABLES["coefficients"], TABLES["index"] = 0x7FFF_2000_0010, 0x7FFF_3000_0004
TABLES["draws"] = 0x7FFF_4000_0020

MASTERS = {None: {}, "split": {"param_remainder": 2}, "float32": {"master_param": 4}}


def arithmetic(param):
    """The arithmetic type of a parameter's dtype."""
    return torch.float64 if param == torch.float64 else torch.float32


class Span:
    """The memory of a tensor, without a reference to it."""

    def __init__(self, tensor):
        self.start = tensor.data_ptr()
        self.size = tensor.numel() * tensor.element_size()
        self._storage = StorageWeakRef(tensor.untyped_storage())

    def is_alive(self):
        return not self._storage.expired()

    def holds(self, address, size):
        is_inside = self.start <= address and address + size <= self.start + self.size
        return is_inside and self.is_alive()


class Workspaces:
    """The memory that launches use for their tables."""

    def __init__(self):
        self._spans = []

    def note(self, tensor):
        self._spans.append(Span(tensor))

    def table(self, memory, name, address, dtype, count, writable=False):
        """Add a table to the accessible memory; returns its rows."""
        size = dtype.itemsize * count
        if not any(span.holds(address, size) for span in self._spans):
            raise PtxError(f"{name}: {size} bytes at {address:#x} lie in no workspace")
        memory.over_host(name, address, size, writable)
        return np.frombuffer(ctypes.string_at(address, size), dtype)

    def segments(self, memory, address, count):
        return self.table(memory, "segments", address, SEGMENT, count)

    def coefficients(self, memory, address, segments, dtype, writable=False):
        """Add the coefficients of segments, in an arithmetic type."""
        rows = _rows(segments["coefficients"])
        self.table(memory, "coefficients", address, COEFFICIENTS[dtype], rows, writable)

    def draws(self, memory, address, count, writable=False):
        return self.table(memory, "draws", address, DRAW, count, writable)

    def allow_prologue(
        self, memory, count, segments, options, coefficients, draws, dtype, counter_size
    ):
        """Add the memory of a prologue, given the addresses of its tables; that of draws or 0."""
        if draws:
            self.draws(memory, draws, count, True)
        segments = self.segments(memory, segments, count)
        rows = _rows(segments["options"])
        options = self.table(memory, "options", options, OPTIONS, rows)
        self.coefficients(memory, coefficients, segments, dtype, True)
        _add_numbers(memory, segments, options, counter_size)


def _rows(indices):
    """The number of rows that a table needs for some indices."""
    return int(indices.max()) + 1


def index_of(segments, chunks, most):
    """The entries of a ChunkIndex, and its shift."""
    shift = next(shift for shift in range(63) if (chunks - 1 >> shift) + 2 <= most)
    begins = (np.arange(chunks - 1 >> shift, dtype=np.int64) + 1 << shift) * CHUNK
    found = np.searchsorted(segments["first"], [0, *begins], side="right") - 1
    return np.array([*found, len(segments) - 1], np.int32), shift


def add_arrays(memory, segments, sizes, amsgrad, master=None):
    """Add the arrays of every segment to the accessible memory of a step.

    Args:
        sizes: Bytes per element of parameters, gradients and moments.
        master: None, "split" or "float32".
    """
    param, grad, moment = sizes
    written = {"param": param, "exp_avg": moment, "exp_avg_sq": moment, **MASTERS[master]}
    if amsgrad:
        written["max_exp_avg_sq"] = moment
    for number, row in enumerate(segments):
        for role, size in written.items():
            name = f"{role} of segment {number}"
            memory.over_host(name, int(row[role]), int(row["numel"]) * size, True)
    add_gradients(memory, segments, grad)


def add_gradients(memory, segments, size):
    """Add the gradients of every segment, of `size` bytes per element, as memory that is read."""
    _add_shared(memory, "gradients", [(int(r["grad"]), int(r["numel"]) * size) for r in segments])


def add_folds(memory, workspaces, programs, numbers, rows, to, numel):
    """Add the memory of a kernel that folds numbers, given its arguments as addresses."""
    if rows:
        rows = workspaces.table(memory, "rows", rows, FOLD_ROW, programs)
        numel = int((rows["first"] + rows["numel"]).max())
        results = int(rows["to"].max()) + 1
    else:
        results = programs
    if numbers == to:
        memory.over_host("numbers", to, 8 * max(numel, results), True)
    else:
        memory.over_host("numbers", numbers, 8 * numel, False)
        memory.over_host("results", to, 8 * results, True)


def add_clip(memory, square_sum, grad_scale, failed, state):
    """Add the memory of a kernel that computes a clip coefficient, given addresses or 0."""
    memory.over_host("state", state, CLIP_STATE.itemsize, True)
    numbers = (square_sum, 8), (grad_scale, 4), (failed, 8)
    _add_shared(memory, "numbers on the device", [given for given in numbers if given[0]])


def _add_numbers(memory, segments, options, counter_size):
    """Add the numbers that the tables point to."""
    for number, row in enumerate(segments):
        memory.over_host(f"counter {number}", int(row["step"]), counter_size, True)
    numbers = []
    for row in options[np.unique(segments["options"])]:
        numbers.append((int(row["lr_at"]), 8 if row["lr_is_float64"] else 4))
        numbers += [(int(row[name]), 4) for name in ("grad_scale_at", "found_inf_at")]
        numbers.append((int(row["clip_at"]), CLIP.itemsize))
    _add_shared(memory, "options on the device", [given for given in numbers if given[0]])


def _add_shared(memory, name, spans):
    """Add memory that is only read; rows may share parts of it."""
    start = end = 0
    for address, size in sorted(span for span in spans if span[1]):
        if address > end:
            memory.over_host(name, start, end - start, False)
            start = address
        end = max(end, address + size)
    memory.over_host(name, start, end - start, False)
