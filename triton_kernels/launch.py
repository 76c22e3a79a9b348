"""Launches of the kernels, and the way of what they read to the device.

    kernels = Kernels(device, (param, grad, moment), amsgrad, counter)  # once: compiles
    upload = Upload(workspace)  # once for each workspace
    kernels.step(upload, segments, numbers)  # every step: at most one copy, then the launches

Each uses the current device and stream.
"""

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .step import (
    COEFFICIENTS_WORDS,
    FIRST,
    NUMEL,
    SEGMENT_WORDS,
    probe_kernel,
    prologue_kernel,
    step_kernel,
)

is_interpreted = not isinstance(step_kernel, triton.JITFunction)

CHUNK = 1024  # scalars of a program
_THREADS = 128  # with eight scalars each: two 128-bit loads of each float32 array
PART = 512  # scalars of a program at once where a chunk is not whole and aligned

_SEGMENT = struct.Struct(f"{SEGMENT_WORDS.value}q")  # as csrc/segments.h has it
_COEFFICIENTS_BYTES = 8 * COEFFICIENTS_WORDS.value

_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.complex128: tl.float64,
    torch.complex64: tl.float32,
}


def options_for(target: Any, param: Any, amsgrad: bool) -> dict[str, int]:
    """The compiler's options for a step.

    Args:
        target: Triton's description of the device.
        param: Triton's dtype of the parameters.
        amsgrad: Whether there are running maxima.
    """
    options = {"num_warps": _THREADS // target.warp_size}
    if target.backend == "cuda":
        # At 7, 6 and 3 blocks on a multiprocessor no register spills; left to itself, the assembler
        # at times spills one to fit another block.
        options["maxnreg"] = 168 if param == tl.float64 else 80 if amsgrad else 72
    return options


def _options(param: Any, amsgrad: bool) -> dict[str, int]:
    if is_interpreted:
        return {}
    return options_for(triton.runtime.driver.active.get_current_target(), param, amsgrad)


def missing() -> str | None:
    """Why Triton has no device here, or None."""
    try:
        triton.runtime.driver.active  # noqa: B018
    except Exception as error:  # besides a device, a driver needs a C compiler
        return f"triton has no driver here: {error}"
    return None


def unusable(device: torch.device) -> str | None:
    """Why no kernel can run on a device, the current one, or None. Starts the device."""
    try:
        torch.empty(1, device=device)
        probe_kernel[(1,)](num_warps=1)
    except torch.AcceleratorError:  # an earlier kernel's, of which Triton knows nothing
        raise
    except Exception as error:
        return f"triton cannot run a kernel on {device}: {error}"
    return None


class Upload:
    """What one launch reads, in device memory: brings there what is not there yet.

    The workspace holds the segments, then the numbers, then the coefficients that the device
    computes, with nothing between them.

    In a captured graph every replay copies the staging memory again, so that memory belongs to the
    graph: allocate it before the capture, and neither change nor free it as long as the graph
    exists. Such an upload serves one step.

    Args:
        workspace: uint8 on the device, of at least TensorTable.workspace_bytes().
        staging: uint8 on the host, pinned and as large; None: taken from torch's pinned memory,
            which torch uses again only once it has been copied.
    """

    def __init__(self, workspace: Tensor, staging: Tensor | None = None) -> None:
        self._workspace = workspace
        self._staging = staging
        self._segments = self._numbers = b""
        self._sizes = (0, 0)
        self.programs = 0
        self._divide()

    def bring(self, segments: bytes, numbers: bytes) -> None:
        """Bring a step's segments and numbers to the workspace, in one copy or none.

        Args:
            segments: As csrc/segments.h has them; at least one.
            numbers: Rows of StepCoefficients, or of DeviceOptions if the device counts.
        """
        has_segments = segments == self._segments
        if has_segments and numbers == self._numbers:
            return
        self._segments = b""  # unknown until all of it is there
        if self._sizes != (len(segments), len(numbers)):
            self._sizes = (len(segments), len(numbers))
            self._divide()
        if has_segments:
            start, data = len(segments), bytearray(numbers)
        else:
            last = _SEGMENT.unpack_from(segments, len(segments) - _SEGMENT.size)
            self.programs = -(-(last[FIRST.value] + last[NUMEL.value]) // CHUNK)
            start, data = 0, bytearray(segments + numbers)
        source = torch.frombuffer(data, dtype=torch.uint8)
        if self._staging is not None:
            source = self._staging[: len(data)].copy_(source)
        elif self._workspace.device.type != "cpu":
            source = source.pin_memory()
        self._workspace[start : start + len(data)].copy_(source, non_blocking=True)
        self._segments, self._numbers = segments, numbers

    def _divide(self) -> None:
        segments, numbers = self._sizes
        end = segments + numbers
        self.count = segments // _SEGMENT.size
        self.table = self._workspace[:segments].view(torch.int64)
        self.numbers = self._workspace[segments:end].view(torch.float64)
        end_of_computed = end + self.count * _COEFFICIENTS_BYTES
        self.computed = self._workspace[end:end_of_computed].view(torch.float64)


class Kernels:
    """The kernels of one launch, compiled for and loaded on the current device when this is made.

    Args:
        device: The current device.
        dtypes: torch's dtypes of parameters, gradients and moments.
        amsgrad: Whether there are running maxima.
        counter: torch's dtype of the step counts if the device counts them, else None.

    Raises:
        RuntimeError: A kernel cannot be compiled or loaded.
    """

    def __init__(
        self,
        device: torch.device,
        dtypes: Sequence[torch.dtype],
        amsgrad: bool,
        counter: torch.dtype | None = None,
    ) -> None:
        param, grad, moment = (_TYPES[dtype] for dtype in dtypes)
        self._step: dict[str, Any] = {"P": param, "G": grad, "M": moment, "AMSGRAD": amsgrad}
        self._step |= {"CHUNK": CHUNK, "PART": PART, "enable_fp_fusion": False}
        self._step |= _options(param, amsgrad)
        self._prologue: dict[str, Any] | None = None
        if counter is not None:
            # One warp, whose lanes read a counter together before one of them writes it.
            self._prologue = {"S": _TYPES[counter], "enable_fp_fusion": False, "num_warps": 1}
        nothing = Upload(torch.empty(0, dtype=torch.uint8, device=device))
        try:
            self._launch(nothing)  # of no program, which compiles and loads
        except torch.AcceleratorError:  # an earlier kernel's
            raise
        except Exception as error:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise RuntimeError(
                f"backend='triton' cannot compile a step on {device} for parameters, gradients and "
                f"moments of {names}: {error}"
            ) from error

    def step(self, upload: Upload, segments: bytes, numbers: bytes) -> None:
        """A step of at least one segment.

        Args:
            upload: Where the launch reads.
            segments: As csrc/segments.h has them.
            numbers: Rows of StepCoefficients, or of DeviceOptions if the device counts.
        """
        upload.bring(segments, numbers)
        self._launch(upload)

    def _launch(self, upload: Upload) -> None:
        coefficients = upload.numbers
        if self._prologue is not None:
            coefficients = upload.computed
            prologue_kernel[(upload.count,)](
                upload.table, upload.numbers, coefficients, **self._prologue
            )
        step_kernel[(upload.programs,)](upload.table, upload.count, coefficients, **self._step)
