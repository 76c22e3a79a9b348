"""Copies the tables of a launch to device memory."""

import struct

import torch
from torch import Tensor

from .kernels import COEFFICIENTS_WORDS, FIRST, NUMEL, SEGMENT_WORDS

CHUNK = 1024  # elements per program

_SEGMENT = struct.Struct(f"{SEGMENT_WORDS.value}q")  # Segment in csrc/segments.h
_COEFFICIENTS_BYTES = 8 * COEFFICIENTS_WORDS.value


class Upload:
    """Holds the tables of one launch in a workspace and copies those that have changed.

    The workspace holds the segments, the host's table (StepCoefficients, or DeviceOptions if the
    device counts the steps) and the coefficients that the device computes, without gaps.

    Each replay of a captured graph copies the staging memory again, so that memory belongs to the
    graph: allocate it before the capture, and neither change nor free it while the graph exists. An
    upload with staging memory serves a single step.

    Args:
        workspace: uint8 on the device, at least TensorTable.workspace_bytes() elements.
        staging: uint8 in pinned host memory, as large as the workspace. None: use a temporary
            tensor in pinned memory, which torch reuses after the copy.

    Attributes:
        num_programs: Programs of the step kernel.
        num_segments: Segments of the launch.
        segments: The segments; int64.
        table: The host's table; float64.
        computed: The coefficients that the device computes; float64.
    """

    def __init__(self, workspace: Tensor, staging: Tensor | None = None) -> None:
        self._workspace = workspace
        self._staging = staging
        self._content = b"", b""
        self._sizes = 0, 0
        self.num_programs = 0
        self._divide()

    def copy(self, segments: bytes, table: bytes) -> None:
        """Copy the tables of a step to the workspace, in at most one copy.

        Args:
            segments: Array of Segment; at least one.
            table: Array of StepCoefficients, or of DeviceOptions if the device counts the steps.
        """
        if self._content == (segments, table):
            return
        same_segments = self._content[0] == segments
        self._content = b"", b""  # the content is unknown if the copy fails
        if self._sizes != (len(segments), len(table)):
            self._sizes = len(segments), len(table)
            self._divide()
        if same_segments:
            start, data = len(segments), bytearray(table)
        else:
            last = _SEGMENT.unpack_from(segments, len(segments) - _SEGMENT.size)
            self.num_programs = -(-(last[FIRST.value] + last[NUMEL.value]) // CHUNK)
            start, data = 0, bytearray(segments + table)
        source = torch.frombuffer(data, dtype=torch.uint8)
        if self._staging is not None:
            source = self._staging[: len(data)].copy_(source)
        elif self._workspace.device.type != "cpu":
            source = source.pin_memory()
        self._workspace[start : start + len(data)].copy_(source, non_blocking=True)
        self._content = segments, table

    def _divide(self) -> None:
        segments, table = self._sizes
        end = segments + table
        self.num_segments = segments // _SEGMENT.size
        self.segments = self._workspace[:segments].view(torch.int64)
        self.table = self._workspace[segments:end].view(torch.float64)
        end_of_computed = end + self.num_segments * _COEFFICIENTS_BYTES
        self.computed = self._workspace[end:end_of_computed].view(torch.float64)
