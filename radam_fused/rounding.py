"""The stored formats in PyTorch operations, with the bits of csrc/scalar.h and csrc/random.h.

Integer operations only, in int64: there, no unsigned 32-bit number overflows.
"""

import struct

import torch
from torch import Tensor

_LOW = 0xFFFF_FFFF
_ALL = 0xFFFF_FFFF_FFFF_FFFF
_NAN = 0x7FC0_0000
_GOLDEN = 0x9E3779B97F4A7C15


def _bits(x: Tensor) -> Tensor:
    """The bits of float32 numbers as int64; those of the canonical NaN for every NaN."""
    return torch.where(x.isnan(), _NAN, x.view(torch.int32).long() & _LOW)


def _float(bits: Tensor) -> Tensor:
    return _signed(bits, 32).int().view(torch.float32)


def _bfloat16(bits: Tensor) -> Tensor:
    return _signed(bits, 16).short().view(torch.bfloat16)


def _signed(bits: Tensor, width: int) -> Tensor:
    """Unsigned integers of a width as signed ones, which a conversion keeps."""
    return bits - ((bits >> (width - 1)) << width)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 numbers as bfloat16 numbers, and the differences of their bits.

    Args:
        x: float32.

    Returns:
        The nearest bfloat16 numbers (of two, the larger in magnitude), and int16: together the 32
        bits of x. NaN becomes the canonical one.
    """
    bits = _bits(x)
    rounded = (bits + 0x8000) >> 16
    return _bfloat16(rounded), (bits - (rounded << 16)).short()


def join(param: Tensor, remainder: Tensor) -> Tensor:
    """The float32 numbers that `split` has split.

    The remainder of another number can be below a zero that the user has written: it is then 0.

    Args:
        param: bfloat16.
        remainder: int16.
    """
    bits = param.view(torch.int16).long() & 0xFFFF
    magnitude = (((bits & 0x7FFF) << 16) + remainder.long()).clamp(min=0)
    return _float(magnitude | ((bits & 0x8000) << 16))


def master_of(param: Tensor, copy: Tensor) -> Tensor:
    """The float32 copies of 16-bit numbers, or the numbers where these are not the copies, rounded.

    Args:
        param: bfloat16 or float16.
        copy: float32.
    """
    rounded = torch.where(copy.isnan(), torch.nan, copy).to(param.dtype)
    is_copy = (rounded.view(torch.int16) == param.view(torch.int16)) | (
        rounded.isnan() & param.isnan()
    )
    return torch.where(is_copy, copy, param.float())


def round_stochastically(x: Tensor, random: Tensor) -> Tensor:
    """Float32 numbers as bfloat16 numbers, with the expectation x.

    Args:
        x: float32.
        random: 16 random bits for each, int64.
    """
    return _bfloat16(torch.where(x.isnan(), _NAN, _bits(x) + random) >> 16)


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _ALL
    return x ^ (x >> 31)


def parameter_key(seed: int, parameter: int) -> int:
    """The key of a parameter's random bits in all steps, given its number."""
    return _mix(_mix((seed + _GOLDEN) & _ALL) ^ parameter)


def step_key(key: int, step: float) -> int:
    """The key of the bits in one step, given the `parameter_key`."""
    bits: int
    [bits] = struct.unpack("<Q", struct.pack("<d", step))
    return _mix(key ^ bits)


def random_bits(key: int, places: Tensor) -> Tensor:
    """32 random bits for each place.

    Args:
        key: The result of `step_key`.
        places: Places of elements in the full tensor, int64.

    Returns:
        int64, of which `exp_avg_sq` takes the lower 16 bits and the parameter the others.
    """
    # In unsigned arithmetic of 64 bits: key + high * _GOLDEN.
    high = places >> 32
    low = (key & _LOW) + high * (_GOLDEN & _LOW)
    second = (key >> 32) + high * (_GOLDEN >> 32) + (low >> 32)
    x = (places + low) & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D + second) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)
