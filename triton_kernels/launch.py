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
PART = 512  # scalars of a program at once where a chunk is not whole and aligned

_UPLOAD = 1024  # bytes that one launch uploads

_SEGMENT = struct.Struct("8q")  # as csrc/segments.h has it
_COLUMNS = 8  # of a table of segments, of 8 bytes each
_COEFFICIENTS = struct.Struct("8dq")  # of a step
_BITS = struct.Struct("9q")  # these, as the kernel takes them

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
    "exact_rectification",
    "degenerated_to_sgd",
    "eps_after_bias_correction",
    "absolute_weight_decay",
    "decay_skipped_steps",
)


class _Kernel:
    """A kernel compiled for the current device, and loaded there, when this is made.

    An error thus comes before anything is written, nothing is loaded while a graph is captured, and
    a launch neither looks the kernel up nor examines its arguments.

    Args:
        kernel: The function.
        arguments: Examples of its arguments.
        constants: Its constants, in their order, which follow the arguments.
        options: Of the compiler.
    """

    def __init__(
        self, kernel: Any, arguments: Sequence[Any], constants: Mapping[str, Any], **options: Any
    ) -> None:
        self._kernel = kernel
        self._constants = tuple(constants.values())
        if not is_interpreted:
            options = {"grid": (1,), "enable_fp_fusion": False, **options}
            self._kernel = kernel.warmup(*arguments, **constants, **options)
            self._kernel[(1, 1, 1)]  # which loads it

    def __call__(self, programs: int, *arguments: Any) -> None:
        """Launch it on the current device and stream."""
        self._kernel[(programs, 1, 1)](*arguments, *self._constants)


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
    memory = torch.empty(_UPLOAD, dtype=torch.uint8, device=device)
    try:
        _uploader()(1, memory.data_ptr(), (0,) * (_UPLOAD // 8))
    except torch.AcceleratorError:  # an earlier kernel's, of which Triton knows nothing
        raise
    except Exception as error:
        return f"triton cannot run a kernel on {device}: {error}"
    return None


def _uploader() -> _Kernel:
    # Examples that Triton takes for numbers of 64 bits, neither 1 nor divisible by 16: of those in
    # a tuple it would make other kernels.
    example = (1 << 62 | 8,) * (_UPLOAD // 8)
    return _Kernel(upload_kernel, (0, example), {}, num_warps=1)


def _padded(size: int) -> int:
    return -(-size // _UPLOAD) * _UPLOAD


def workspace_bytes(rows: int) -> int:
    """Bytes of device memory for a table of so many parameters."""
    return _padded(_COLUMNS * 8 * rows) + _padded(_COEFFICIENTS.size * rows)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bits(number: float) -> int:
    bits: int
    (bits,) = struct.unpack("q", struct.pack("d", number))
    return bits


class Launch:
    """The launches of one table on the current device and stream.

    What it has brought to its workspace it does not bring again.

    Args:
        workspace: Address of the memory for tables, of workspace_bytes(rows).
        rows: Parameters that the table has at most.
        dtypes: torch's dtypes of parameters, gradients and moments.
        amsgrad: Whether there are running maxima.
        counts_on_device: Whether counting_step() is to be called, not step().
    """

    def __init__(
        self,
        workspace: int,
        rows: int,
        dtypes: Sequence[torch.dtype],
        amsgrad: bool,
        counts_on_device: bool,
    ) -> None:
        self._table = workspace
        self._coefficients = workspace + _padded(_COLUMNS * 8 * rows)
        self._rows = rows
        param, grad, moment = (_TYPES[dtype] for dtype in dtypes)
        constants = {"P": param, "G": grad, "M": moment, "AMSGRAD": amsgrad}
        constants |= {"CHUNK": CHUNK, "PART": PART}
        options = _options(param, amsgrad)
        self._step_kernel = _Kernel(step_kernel, (0,) * 19, constants, **options)
        self._upload_kernel = _uploader()
        if counts_on_device:
            # One warp: its threads read a counter together before one of them writes it.
            self._prologue_kernel = _Kernel(prologue_kernel, (0,) * 16, {}, num_warps=1)
        self._segments = b""
        self._there: dict[int, bytes] = {}  # what was uploaded, by address

    def step(self, segments: bytes, coefficients: Sequence[tuple[Any, ...]]) -> None:
        """A step that the host has counted.

        Args:
            segments: Those of the table, as csrc/segments.h has them.
            coefficients: For each of the step counts that the segments name,
                radam_fused.rectification.Coefficients.
        """
        packed = [_COEFFICIENTS.pack(*each) for each in coefficients]
        if len(packed) > 1:
            self._upload(self._coefficients, b"".join(packed))
            self._step(segments, self._coefficients, bytes(_BITS.size))
        else:
            self._step(segments, 0, packed[0])

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
        self._prologue_kernel(
            len(segments) // _SEGMENT.size,
            self._table,
            self._rows,
            self._coefficients,
            counters.data_ptr(),
            int(counters.dtype == torch.float64),
            _address(lr),
            int(lr is not None and lr.dtype == torch.float64),
            _address(grad_scale),
            _address(found_inf),
            *map(_bits, numbers),
            sum(bool(options[name]) << i for i, name in enumerate(_FLAGS)),
        )
        self._step(segments, self._coefficients, bytes(_BITS.size))

    def _step(self, segments: bytes, coefficients_at: int, coefficients: bytes) -> None:
        count = len(segments) // _SEGMENT.size
        if count == 0:
            return
        last = _SEGMENT.unpack_from(segments, len(segments) - _SEGMENT.size)
        *addresses, numel, first, row = last
        programs = -(-(first + numel) // CHUNK)
        if programs == 0:
            return
        table = 0
        if count > 1:
            self._upload_table(segments)
            table = self._table
        elif coefficients_at != 0:
            coefficients_at += row * _COEFFICIENTS.size
        self._step_kernel(
            programs,
            table,
            self._rows,
            count,
            *addresses,
            numel,
            coefficients_at,
            *_BITS.unpack(coefficients),
        )

    def _upload_table(self, segments: bytes) -> None:
        if segments == self._segments:
            return
        self._segments = b""  # unknown until all of it is there
        # By columns, so that only one of them is uploaded again when the gradients have moved.
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
                words = struct.unpack(f"{_UPLOAD // 8}q", part.ljust(_UPLOAD, b"\0"))
                self._upload_kernel(1, to + start, words)
                self._there[to + start] = part
