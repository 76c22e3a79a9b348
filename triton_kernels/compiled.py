"""Compiles the kernels for a device and runs them.

    kernels = CompiledKernels(device, (param, grad, moment), amsgrad, counter)  # once
    upload = kernels.upload(workspace)  # once per workspace
    kernels.run(upload, segments, table, chunk_index)  # every step: one copy at most, then kernels

A step that clips calls sum_squares first.

All of them use the current device and stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import probe_kernel, prologue_kernel, step_kernel
from .storage import COEFFICIENTS_WORDS
from .sum_kernels import round_kernel
from .sums import fold_levels, sum_chunks
from .upload import CHUNK, INDEX_BYTES, SEGMENT, Upload

is_interpreted = not isinstance(step_kernel, triton.JITFunction)

PART = 512  # elements per block in a chunk that is not whole and aligned
_THREADS = 128  # per program: eight elements each, two 128-bit loads of each float32 array
# Limits of registers per thread, for 7, 6 or 3 blocks per multiprocessor: no register spills at
# them. Without a limit, ptxas sometimes spills a register to fit one more block.
_REGISTERS, _REGISTERS_WITH_MAXIMA, _REGISTERS_OF_FLOAT64 = 72, 80, 168
_REGISTERS_OF_CONVERSIONS, _REGISTERS_OF_GAPS = 96, 128  # for 5 and 4

_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.complex128: tl.float64,
    torch.complex64: tl.float32,
}


def options_for(
    target: Any, param: Any, amsgrad: bool, converts: bool = False, has_gaps: bool = False
) -> dict[str, int]:
    """The compiler options of the step kernel.

    Args:
        target: Triton's description of the device.
        param: Triton dtype of the parameters.
        amsgrad: Whether there are running maxima.
        converts: Whether there are masters or stochastic rounding.
        has_gaps: See CompiledKernels.
    """
    options = {"num_warps": _THREADS // target.warp_size}
    if target.backend == "cuda":
        narrow = _REGISTERS_WITH_MAXIMA if amsgrad else _REGISTERS
        narrow = _REGISTERS_OF_CONVERSIONS if converts else narrow
        narrow = _REGISTERS_OF_GAPS if has_gaps else narrow
        options["maxnreg"] = _REGISTERS_OF_FLOAT64 if param == tl.float64 else narrow
    return options


def _options(*kind: Any) -> dict[str, int]:
    if is_interpreted:
        return {}
    return options_for(triton.runtime.driver.active.get_current_target(), *kind)


def unavailable() -> str | None:
    """The reason why Triton has no device; None if it has one."""
    try:
        triton.runtime.driver.active  # noqa: B018
    except Exception as error:  # a driver needs a device and a C compiler
        return f"no GPU that triton can use was found ({error})"
    return None


def unsupported(device: torch.device) -> str | None:
    """The reason why the current device cannot run a kernel; None if it can. Initialises it."""
    try:
        torch.empty(1, device=device)
        probe_kernel[(1,)](num_warps=1)
    except torch.AcceleratorError:  # caused by an earlier kernel, not by Triton
        raise
    except Exception as error:
        return f"triton cannot run a kernel on {device}: {error}"
    return None


class CompiledKernels:
    """The kernels of one launch. The constructor compiles and loads them on the current device.

    Args:
        device: The current device.
        dtypes: torch dtypes of parameters, gradients and moments.
        amsgrad: Whether there are running maxima.
        counter: torch dtype of the step counters if the device counts the steps, else None.
        master: None, "split" or "float32": the masters of the parameters.
        draws: Names of the tensors that are rounded stochastically.
        has_gaps: Whether the elements of a shard do not lie side by side in the full tensor.

    Raises:
        RuntimeError: A kernel cannot be compiled or loaded.
    """

    def __init__(
        self,
        device: torch.device,
        dtypes: Sequence[torch.dtype],
        amsgrad: bool,
        counter: torch.dtype | None = None,
        master: str | None = None,
        draws: Sequence[str] = (),
        has_gaps: bool = False,
    ) -> None:
        param, grad, moment = (_TYPES[dtype] for dtype in dtypes)
        self._arithmetic = torch.float64 if param == tl.float64 else torch.float32
        self._step: dict[str, Any] = {"P": param, "G": grad, "M": moment, "AMSGRAD": amsgrad}
        self._step |= {"MASTER": master, "DRAWS_PARAM": "param" in draws}
        self._step |= {"DRAWS_EXP_AVG_SQ": "exp_avg_sq" in draws, "GAPS": has_gaps}
        self._step |= {"CHUNK": CHUNK, "PART": PART, "enable_fp_fusion": False}
        converts = master is not None or len(draws) > 0
        self._limits = _options(param, amsgrad, converts, has_gaps)
        self._prologue: dict[str, Any] | None = None
        if counter is not None:
            # One warp: its lanes read a counter together before one of them writes it.
            self._prologue = {"S": _TYPES[counter], "DRAWS": len(draws) > 0}
            self._prologue |= {"enable_fp_fusion": False, "num_warps": 1}
        empty = self.upload(torch.empty(0, dtype=torch.uint8, device=device))
        try:
            self._run(empty)  # a grid of zero programs compiles and loads the kernels
        except torch.AcceleratorError:  # caused by an earlier kernel
            raise
        except Exception as error:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise RuntimeError(
                f"backend='triton' cannot compile a step on {device} for parameters, gradients and "
                f"moments of {names}: {error}"
            ) from error

    def upload(self, workspace: Tensor, staging: Tensor | None = None) -> Upload:
        """The tables of the launch in a workspace. See Upload."""
        return Upload(workspace, self._arithmetic, staging)

    @staticmethod
    def workspace_bytes(tables: int) -> int:
        """Bytes of a workspace for tables of TensorTable.workspace_bytes()."""
        return INDEX_BYTES + tables

    def run(
        self,
        upload: Upload,
        segments: bytes,
        table: bytes,
        chunk_index: Callable[[int], tuple[bytes, int]],
        clip: Tensor | None = None,
        tracked: tuple[Sequence[int], Tensor, Tensor] | None = None,
        draws: bytes = b"",
    ) -> None:
        """Enqueue one step.

        Args:
            upload: The launch's tables on the device.
            segments: Array of Segment; at least one.
            table: Array of StepCoefficients, in float64 if the device clips them, or of
                DeviceOptions if the device counts the steps.
            chunk_index: See Upload.copy_segments.
            clip: Norm, coefficient and skips, if the device clips the coefficients; float64.
            tracked: If the step sums the squares of the differences that it makes to the stored
                parameters: the last three arguments of sum_squares, whose rows the upload has.
            draws: Array of Draw; empty if nothing is rounded stochastically.
        """
        computed = 0
        if self._prologue is not None:
            computed = len(segments) // SEGMENT.size
        elif clip is not None:
            computed = len(table) // (8 * COEFFICIENTS_WORDS.value)
        upload.copy(segments, table, chunk_index, computed, draws=draws)
        if self._prologue is None and clip is not None:
            round_kernel[(computed,)](
                upload.given, clip, upload.coefficients, num_warps=1, enable_fp_fusion=False
            )
        if tracked is None:
            self._run(upload)
            return
        sizes, scratch, sums = tracked
        numbers = scratch.view(torch.float64)
        self._run(upload, numbers)
        fold_levels(upload, sizes, numbers, sums)

    def sum_squares(
        self,
        upload: Upload,
        segments: bytes,
        chunk_index: Callable[[int], tuple[bytes, int]],
        levels: tuple[bytes, Sequence[int]],
        scratch: Tensor,
        sums: Tensor,
    ) -> None:
        """Enqueue the sums of the squares of the gradients.

        Args:
            upload: The launch's tables on the device.
            segments: Array of Segment; at least one.
            chunk_index: See Upload.copy_segments.
            levels: Array of FoldRow, and the number of rows of each level.
            scratch: See sums.sum_squares; uint8.
            sums: See sums.sum_squares.
        """
        rows, sizes = levels
        upload.copy_segments(segments, rows, chunk_index)
        numbers = scratch.view(torch.float64)
        sum_chunks(upload, self._step["G"], numbers)
        fold_levels(upload, sizes, numbers, sums)

    def _run(self, upload: Upload, sums: Tensor | None = None) -> None:
        if self._prologue is not None:
            prologue_kernel[(upload.num_segments,)](
                upload.segments,
                upload.given,
                upload.coefficients,
                upload.draws,
                **self._prologue,
            )
        tracks = sums is not None
        step_kernel[(upload.num_programs,)](
            upload.segments,
            upload.index,
            upload.index_shift,
            upload.coefficients,
            upload.draws,
            sums if tracks else upload.coefficients,
            TRACKS=tracks,
            **self._step,
            **({} if tracks else self._limits),
        )
