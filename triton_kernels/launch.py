"""One table's launches: what travels in arguments, what lies in device memory, when it gets there.

All of it travels by value, also into a captured graph, so no host memory has to outlive a call.
"""

import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .step import prologue_kernel, step_kernel, upload_kernel

is_interpreted = not isinstance(step_kernel, triton.JITFunction)

CHUNK = 1024  # scalars of a program
_THREADS = 128  # with eight scalars each: two 128-bit loads of each float32 array
_PART = 512  # scalars of a program at once where a chunk is not whole and aligned

# Bytes that one launch uploads.
_UPLOAD = 512

_COLUMNS = 8
_NUMBERS = struct.Struct("8dq")  # a step's coefficients
_BITS = struct.Struct("9q")  # their bits, as the kernel takes them

_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.complex128: tl.float64,
    torch.complex64: tl.float32,
}

# In the order of the prologue's flags.
_FLAGS = (
    "decoupled_weight_decay",
    "maximize",
    "rectify",
    "degenerated_to_sgd",
    "eps_after_bias_correction",
    "absolute_weight_decay",
    "decay_skipped_steps",
)


def _run(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    kernel[(programs,)](*arguments, enable_fp_fusion=False, **options)


def _compile(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    kernel.warmup(*arguments, grid=(programs,), enable_fp_fusion=False, **options)


def shape_for(target: Any, param: Any, amsgrad: bool) -> dict[str, Any]:
    """The shape of the step's kernel.

    Args:
        target: Triton's description of the device.
        param: Triton's dtype of the parameters.
        amsgrad: Whether there are running maxima.
    """
    shape = {"CHUNK": CHUNK, "PART": _PART, "num_warps": _THREADS // target.warp_size}
    if target.backend == "cuda":
        # At 7, 6 and 3 blocks on a multiprocessor no register spills; left to itself, the assembler
        # at times spills one to fit another block.
        shape["maxnreg"] = 168 if param == tl.float64 else 80 if amsgrad else 72
    return shape


def _shape(param: Any, amsgrad: bool) -> dict[str, Any]:
    if is_interpreted:
        return {"CHUNK": CHUNK, "PART": _PART}
    return shape_for(triton.runtime.driver.active.get_current_target(), param, amsgrad)


def missing() -> str | None:
    """Why Triton has no device here, or None."""
    try:
        triton.runtime.driver.active  # noqa: B018
    except Exception as error:  # a driver may lack more than itself, as a compiler
        return f"triton finds no GPU that it can use: {error}"
    return None


def unusable(device: torch.device) -> str | None:
    """Why no kernel can run on a device, the current one, or None. Starts the device."""
    try:
        upload(torch.empty(_UPLOAD, dtype=torch.uint8, device=device).data_ptr(), b"")
    except Exception as error:
        return f"triton cannot run a kernel on {device}: {error}"
    return None


def _padded(size: int) -> int:
    return -(-size // _UPLOAD) * _UPLOAD


def workspace_bytes(rows: int) -> int:
    """Bytes of device memory for a table of so many parameters."""
    return _padded(_COLUMNS * 8 * rows) + _padded(_NUMBERS.size * rows)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bits(number: float) -> int:
    bits: int
    (bits,) = struct.unpack("q", struct.pack("d", number))
    return bits


def upload(to: int, data: bytes) -> None:
    """Write bytes to device memory, on the current device and stream.

    Args:
        to: The address.
        data: As many bytes as one launch uploads, or less, which zeros then follow.
    """
    words = struct.unpack(f"{_UPLOAD // 4}I", data.ljust(_UPLOAD, b"\0"))
    # Integers of which each is of 64 bits, not 1 and not a multiple of 16: of those in a tuple
    # Triton would make other kernels.
    marked = tuple(1 << 62 | word << 4 | 8 for word in words)
    _run(upload_kernel, 1, to, marked, num_warps=1)


class Launch:
    """The launches of one table on the current device and stream.

    What it has brought to its workspace it does not bring again.

    Args:
        workspace: Address of the memory for tables, of workspace_bytes(rows).
        rows: Parameters that the table has at most.
        dtypes: torch's dtypes of parameters, gradients and moments.
        amsgrad: Whether there are running maxima.
    """

    def __init__(
        self, workspace: int, rows: int, dtypes: Sequence[torch.dtype], amsgrad: bool
    ) -> None:
        self._table = workspace
        self._numbers = workspace + _padded(_COLUMNS * 8 * rows)
        self._rows = rows
        param, grad, moment = (_TYPES[dtype] for dtype in dtypes)
        self._constants = {"P": param, "G": grad, "M": moment, "AMSGRAD": amsgrad}
        self._constants |= _shape(param, amsgrad)
        self._segments = b""
        self._there: dict[int, bytes] = {}  # what was uploaded, by address

    def compile(self, counts_on_device: bool) -> None:
        """Compile what a step will run, so that an error comes before anything is written."""
        _compile(step_kernel, 1, *[0] * 19, **self._constants)
        if counts_on_device:
            _compile(prologue_kernel, 1, *[0] * 16, num_warps=1)

    def step(self, segments: bytes, coefficients: Sequence[tuple[Any, ...]]) -> None:
        """A step that the host has counted.

        Args:
            segments: Those of the table, as csrc/segments.h has them.
            coefficients: For each of the step counts that the segments name,
                radam_fused.rectification.Coefficients.
        """
        numbers = [_NUMBERS.pack(*each) for each in coefficients]
        if len(numbers) > 1:
            self._upload(self._numbers, b"".join(numbers))
            self._step(segments, self._numbers, _BITS.size * b"\0")
        else:
            self._step(segments, 0, numbers[0])

    def counting_step(
        self,
        segments: bytes,
        counters: Tensor,
        options: Mapping[str, Any],
        lr: Tensor | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """A step that the device counts.

        Args:
            segments: Those of the table, each with coefficients of its own.
            counters: Step counts, of float32 or float64.
            options: Arguments of radam_fused.rectification.coefficients(), without a learning rate
                that is ...
            lr: ... a tensor of float32 or float64 on the device.
            grad_scale: One float32 number by which the gradients are too large, or None.
            found_inf: One float32 number, not 0 where nothing is to move, or None.
        """
        self._upload_table(segments)
        beta1, beta2 = options["betas"]
        numbers = (
            options.get("lr", 0.0),
            beta1,
            beta2,
            options["eps"],
            options["weight_decay"],
            options["rectify_threshold"],
        )
        _run(
            prologue_kernel,
            len(segments) // (8 * _COLUMNS),
            self._table,
            self._rows,
            self._numbers,
            counters.data_ptr(),
            int(counters.dtype == torch.float64),
            _address(lr),
            int(lr is not None and lr.dtype == torch.float64),
            _address(grad_scale),
            _address(found_inf),
            *map(_bits, numbers),
            sum(bool(options[name]) << i for i, name in enumerate(_FLAGS)),
            num_warps=1,
        )
        self._step(segments, self._numbers, _BITS.size * b"\0")

    def _step(self, segments: bytes, numbers: int, coefficients: bytes) -> None:
        count = len(segments) // (8 * _COLUMNS)
        if count == 0:
            return
        *addresses, numel, first, row = struct.unpack_from("8q", segments, len(segments) - 64)
        programs = -(-(first + numel) // CHUNK)
        if programs == 0:
            return
        table = 0
        if count == 1:
            numbers += row * _NUMBERS.size if numbers else 0
        else:
            self._upload_table(segments)
            table = self._table
        _run(
            step_kernel,
            programs,
            table,
            self._rows,
            count,
            *addresses,
            numel,
            numbers,
            *_BITS.unpack(coefficients),
            **self._constants,
        )

    def _upload_table(self, segments: bytes) -> None:
        if segments == self._segments:
            return
        self._segments = b""  # unknown until all of it is there
        words, table = array("q", segments), array("q", bytes(_COLUMNS * 8 * self._rows))
        count = len(words) // _COLUMNS
        for column in range(_COLUMNS):
            start = column * self._rows
            table[start : start + count] = words[column::_COLUMNS]
        self._upload(self._table, table.tobytes())
        self._segments = segments

    def _upload(self, to: int, data: bytes) -> None:
        for start in range(0, len(data), _UPLOAD):
            part = data[start : start + _UPLOAD]
            if self._there.get(to + start) != part:
                self._there.pop(to + start, None)
                upload(to + start, part)
                self._there[to + start] = part
