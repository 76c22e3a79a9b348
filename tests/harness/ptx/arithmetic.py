"""The arithmetic of PTX on arrays, for operations that NumPy lacks.

Arrays have one element a thread, or one element that all threads share.
"""

import numpy as np

from .machine import PtxError

_NAN = np.uint32(0x7FFFFFFF).view(np.float32)


def canonical(x):
    """Float32 results with the canonical NaN of a GPU."""
    nan = x != x
    if nan.any():
        x[nan] = _NAN
    return x


def smaller(a, b):
    """The smaller number; -0 is smaller than 0, and a NaN counts as no number."""
    a, b = np.broadcast_arrays(a, b)
    takes_a = (a < b) | ((a == b) & np.signbit(a)) | (b != b)
    return np.where(takes_a, a, b)


def to_int64(x):
    """Convert with rounding towards zero and saturation; NaN becomes the lowest value."""
    x = x.astype(np.float64)
    fits = (x >= -(2.0**63)) & (x < 2.0**63)
    nearest = np.where(x > 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min)
    return np.where(fits, np.where(fits, x, 0).astype(np.int64), nearest)


def to_bf16(x):
    bits = x.view(np.uint32)
    odd = (bits >> 16) & 1
    return np.where(x != x, 0x7FFF, (bits + odd + 0x7FFF) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_f16(x):
    return np.where(x != x, np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def pack(high, low):
    return (high.astype(np.uint32) << 16) | low


def fma32(a, b, c):
    """Round once: the sum in float64, rounded to odd by its error, then to float32."""
    product = a.astype(np.float64) * b  # exact
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return canonical(np.where(inexact, bits + towards, bits).view(np.float64).astype(np.float32))


def shift_left(a, count):
    bits = a.itemsize * 8
    moved = a << np.minimum(count, bits - 1).astype(a.dtype)
    return moved if (count < bits).all() else np.where(count < bits, moved, a.dtype.type(0))


def shift_right(a, count):
    bits = a.itemsize * 8
    moved = a >> np.minimum(count, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i" or (count < bits).all():
        return moved
    return np.where(count < bits, moved, a.dtype.type(0))


def extract_bits(a, start, length):
    mask = ~shift_left(~np.zeros_like(a), length & 0xFF)
    return shift_right(a, start & 0xFF) & mask


def extract_signed_bits(a, start, length):
    """As extract_bits, with the sign of the highest extracted bit."""
    start, length = np.minimum(start & 0xFF, 31), length & 0xFF
    above = np.where(start + length < 32, 32 - length, 0)
    found = a >> start.astype(np.int32)
    kept = shift_right(shift_left(found, above), above)
    return np.where(length == 0, np.int32(0), np.where(above > 0, kept, found)).astype(np.int32)


def divide(a, b):
    """Integer division, rounded towards zero."""
    if (b == 0).any():
        raise PtxError("an integer division by zero")
    quotient = a // b
    if a.dtype.kind == "i":
        quotient += (a % b != 0) & ((a < 0) != (b < 0))
    return quotient


def permute_bytes(a, b, selector):
    """Each nibble of the selector chooses one of eight bytes, or the sign of that byte."""
    pair = (b.astype(np.uint64) << 32) | a
    result = np.zeros(np.broadcast(pair, selector).shape, np.uint32)
    for i in range(4):
        nibble = (selector >> (4 * i)) & 0xF
        byte = ((pair >> (8 * (nibble & 7)).astype(np.uint64)) & 0xFF).astype(np.uint32)
        sign = np.where(byte & 0x80, np.uint32(0xFF), np.uint32(0))
        result |= np.where(nibble & 8, sign, byte) << (8 * i)
    return result
