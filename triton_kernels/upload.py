"""Copies the tables of a launch to device memory."""

import struct
from collections.abc import Callable

import torch
from torch import Tensor

from .storage import COEFFICIENTS_WORDS, FIRST, NUMEL, SEGMENT_WORDS

CHUNK = 1024  # elements per program
INDEX_ENTRIES = 1024  # of a ChunkIndex (csrc/chunk_index.h), at most
INDEX_BYTES = 4 * INDEX_ENTRIES

SEGMENT = struct.Struct(f"{SEGMENT_WORDS.value}q")  # Segment in csrc/segments.h


class Upload:
    """Holds the tables of one launch in a workspace and copies those that have changed.

    The workspace holds the index, the segments, the rows of the norm (FoldRow), the random bits
    (Draw), the host's table (StepCoefficients, or DeviceOptions if the device counts the steps) and
    the coefficients that the device computes, without gaps.

    Each replay of a captured graph copies the staging memory again, so that memory belongs to the
    graph: allocate it before the capture, and neither change nor free it while the graph exists. An
    upload with staging memory serves a single step.

    Args:
        workspace: uint8 on the device, at least CompiledKernels.workspace_bytes() elements.
        arithmetic: float32 or float64, the arithmetic type of the launch.
        staging: uint8 in pinned host memory, as large as the workspace. None: use a temporary
            tensor in pinned memory, which torch reuses after the copy.

    Attributes:
        num_programs: Programs of the step kernel.
        num_segments: Segments of the launch.
        index: The entries of the index; int32.
        index_shift: Its shift.
        segments: The segments; int64.
        rows: The rows of the norm; int64.
        draws: The random bits of the segments; int64.
        given: The table of the host, if the device computes the coefficients from it; float64.
        coefficients: The coefficients, in the arithmetic type.
    """

    def __init__(
        self,
        workspace: Tensor,
        arithmetic: torch.dtype,
        staging: Tensor | None = None,
    ) -> None:
        self._workspace = workspace
        self._arithmetic = arithmetic
        self._staging = staging
        self._content = b"", b"", b""
        self._sizes = 0, 0, 0, 0
        self._computed = 0  # rows of coefficients that the device computes
        self.num_programs = 0
        self.index_shift = 0
        self._divide()

    def copy_segments(
        self, segments: bytes, rows: bytes, chunk_index: Callable[[int], tuple[bytes, int]]
    ) -> None:
        """Copy the tables of a norm to the workspace, in at most one copy.

        Args:
            segments: Array of Segment; at least one.
            rows: Array of FoldRow.
            chunk_index: Returns the entries of the segments' index, given their largest number, and
                its shift.
        """
        if self._content[:2] != (segments, rows):
            self.copy(segments, b"", chunk_index, rows=rows)

    def copy(
        self,
        segments: bytes,
        table: bytes,
        chunk_index: Callable[[int], tuple[bytes, int]],
        computed: int = 0,
        rows: bytes | None = None,
        draws: bytes = b"",
    ) -> None:
        """Copy the tables of a step to the workspace, in at most one copy.

        Args:
            segments: Array of Segment; at least one.
            table: Array of StepCoefficients, in float64 if the device clips them, or of
                DeviceOptions if the device counts the steps.
            chunk_index: See copy_segments.
            computed: Rows of coefficients that the device computes from the table.
            rows: Array of FoldRow; None for those of the last norm.
            draws: Array of Draw; empty if nothing is rounded stochastically.
        """
        rows = self._content[1] if rows is None else rows
        head, self._computed = (segments, rows), computed
        changing = draws + table
        if self._content == (*head, changing):
            self._divide()
            return
        same_head = self._content[:2] == head
        self._content = b"", b"", b""  # the content is unknown if the copy fails
        self._sizes = len(segments), len(rows), len(draws), len(table)
        self._divide()
        if same_head:
            start, data = INDEX_BYTES + len(segments) + len(rows), bytearray(changing)
        else:
            last = SEGMENT.unpack_from(segments, len(segments) - SEGMENT.size)
            self.num_programs = -(-(last[FIRST.value] + last[NUMEL.value]) // CHUNK)
            index, self.index_shift = chunk_index(INDEX_ENTRIES)
            index = index.ljust(INDEX_BYTES, b"\0")
            start, data = 0, bytearray(index + segments + rows + changing)
        if data:
            self._copy_bytes(start, torch.frombuffer(data, dtype=torch.uint8))
        self._content = *head, changing

    def _copy_bytes(self, start: int, source: Tensor) -> None:
        end = start + source.numel()
        if self._staging is not None:
            source = self._staging[start:end].copy_(source)
        elif self._workspace.device.type != "cpu":
            source = source.pin_memory()
        self._workspace[start:end].copy_(source, non_blocking=True)

    def _divide(self) -> None:
        segments, rows, draws, table = self._sizes
        self.num_segments = segments // SEGMENT.size
        computed = self._computed * COEFFICIENTS_WORDS.value * self._arithmetic.itemsize
        given, coefficients = (table, computed) if self._computed else (0, table)
        sizes = INDEX_BYTES, segments, rows, draws, given, coefficients
        words = torch.int64
        dtypes = torch.int32, words, words, words, torch.float64, self._arithmetic
        parts, start = [], 0
        for size, dtype in zip(sizes, dtypes, strict=True):
            parts.append(self._workspace[start : start + size].view(dtype))
            start += size
        self.index, self.segments, self.rows, self.draws, self.given, self.coefficients = parts
