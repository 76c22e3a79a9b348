"""Copies the tables of a launch to device memory."""

import struct
from collections.abc import Callable

import torch
from torch import Tensor

from .kernels import COEFFICIENTS_WORDS, FIRST, NUMEL, SEGMENT_WORDS

CHUNK = 1024  # elements per program
INDEX_ENTRIES = 1024  # of a ChunkIndex (csrc/chunk_index.h), at most
INDEX_BYTES = 4 * INDEX_ENTRIES

_SEGMENT = struct.Struct(f"{SEGMENT_WORDS.value}q")  # Segment in csrc/segments.h


class Upload:
    """Holds the tables of one launch in a workspace and copies those that have changed.

    The workspace holds the index, the segments, the host's table (StepCoefficients, or
    DeviceOptions if the device counts the steps) and the coefficients that the device computes,
    without gaps.

    Each replay of a captured graph copies the staging memory again, so that memory belongs to the
    graph: allocate it before the capture, and neither change nor free it while the graph exists. An
    upload with staging memory serves a single step.

    Args:
        workspace: uint8 on the device, at least CompiledKernels.workspace_bytes() elements.
        arithmetic: float32 or float64, the arithmetic type of the launch.
        counts_on_device: Whether the device counts the steps.
        staging: uint8 in pinned host memory, as large as the workspace. None: use a temporary
            tensor in pinned memory, which torch reuses after the copy.

    Attributes:
        num_programs: Programs of the step kernel.
        num_segments: Segments of the launch.
        index: The entries of the index; int32.
        index_shift: Its shift.
        segments: The segments; int64.
        options: The DeviceOptions; float64, empty if the host counts the steps.
        coefficients: The coefficients, in the arithmetic type.
    """

    def __init__(
        self,
        workspace: Tensor,
        arithmetic: torch.dtype,
        counts_on_device: bool = False,
        staging: Tensor | None = None,
    ) -> None:
        self._workspace = workspace
        self._arithmetic = arithmetic
        self._counts_on_device = counts_on_device
        self._staging = staging
        self._content = b"", b""
        self._sizes = 0, 0
        self.num_programs = 0
        self.index_shift = 0
        self._divide()

    def copy(
        self, segments: bytes, table: bytes, chunk_index: Callable[[int], tuple[bytes, int]]
    ) -> None:
        """Copy the tables of a step to the workspace, in at most one copy.

        Args:
            segments: Array of Segment; at least one.
            table: Array of StepCoefficients, or of DeviceOptions if the device counts the steps.
            chunk_index: Returns the entries of the segments' index, given their largest number, and
                its shift.
        """
        if self._content == (segments, table):
            return
        same_segments = self._content[0] == segments
        self._content = b"", b""  # the content is unknown if the copy fails
        if self._sizes != (len(segments), len(table)):
            self._sizes = len(segments), len(table)
            self._divide()
        if same_segments:
            start, data = INDEX_BYTES + len(segments), bytearray(table)
        else:
            last = _SEGMENT.unpack_from(segments, len(segments) - _SEGMENT.size)
            self.num_programs = -(-(last[FIRST.value] + last[NUMEL.value]) // CHUNK)
            index, self.index_shift = chunk_index(INDEX_ENTRIES)
            start, data = 0, bytearray(index.ljust(INDEX_BYTES, b"\0") + segments + table)
        source = torch.frombuffer(data, dtype=torch.uint8)
        if self._staging is not None:
            source = self._staging[: len(data)].copy_(source)
        elif self._workspace.device.type != "cpu":
            source = source.pin_memory()
        self._workspace[start : start + len(data)].copy_(source, non_blocking=True)
        self._content = segments, table

    def _divide(self) -> None:
        segments, table = self._sizes
        self.num_segments = segments // _SEGMENT.size
        computed = self.num_segments * COEFFICIENTS_WORDS.value * self._arithmetic.itemsize
        options, coefficients = (table, computed) if self._counts_on_device else (0, table)
        sizes = INDEX_BYTES, segments, options, coefficients
        dtypes = torch.int32, torch.int64, torch.float64, self._arithmetic
        parts, start = [], 0
        for size, dtype in zip(sizes, dtypes, strict=True):
            parts.append(self._workspace[start : start + size].view(dtype))
            start += size
        self.index, self.segments, self.options, self.coefficients = parts
