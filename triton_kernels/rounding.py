"""The stored formats and their random bits, with the bits of csrc/scalar.h and csrc/random.h.

Integer operations only. A float32 number is rounded by the sum of its bits and random ones, and a
master is the bits that a 16-bit number leaves out.
"""

import triton
import triton.language as tl

_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def _bits(x):
    """The bits of float32 numbers; those of the canonical NaN for every NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(x != x, tl.full(x.shape, _NAN, tl.uint32), bits)


@triton.jit
def _bfloat16(bits):
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def split(x):
    """Float32 numbers as the nearest bfloat16 numbers, and the differences of their bits."""
    bits = _bits(x)
    rounded = (bits + 0x8000) >> 16
    return _bfloat16(rounded), (bits - (rounded << 16)).to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def join(param, remainder):
    """The numbers that split() has split. A remainder below a zero counts as 0."""
    bits = param.to(tl.int16, bitcast=True).to(tl.int32)
    total = ((bits & 0x7FFF) << 16) + remainder.to(tl.int32)
    magnitude = tl.where(total > 0, total, 0)
    return (magnitude | ((bits & 0x8000) << 16)).to(tl.float32, bitcast=True)


@triton.jit
def master_of(param, copy):
    """The float32 copies of 16-bit numbers, or the numbers where these are not the copies."""
    same = copy.to(param.dtype).to(tl.int16, bitcast=True) == param.to(tl.int16, bitcast=True)
    return tl.where(same, copy, param.to(tl.float32))


@triton.jit
def round_stochastically(x, random):
    """Float32 numbers as bfloat16 numbers with the expectation x, given 16 random bits each."""
    total = tl.where(x != x, tl.full(x.shape, _NAN, tl.uint32), _bits(x) + random)
    return _bfloat16(total >> 16)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def step_key(key, step):
    """The key of the random bits in one step.

    Args:
        key: The key of a parameter; uint64.
        step: The step count; float64.
    """
    return _mix(key ^ step.to(tl.uint64, bitcast=True))


@triton.jit
def _place(run, stride, start, SIZE: tl.constexpr):
    """The places of SIZE elements, in 32-bit divisions: a block has few runs, or parts of two."""
    LONG: tl.constexpr = 1 << 30
    before, within = start // run, start % run
    length = tl.minimum(run, LONG)
    first = (length - tl.minimum(run - within, length)).to(tl.int32)
    block = tl.arange(0, SIZE)
    runs = ((first + block) // length.to(tl.int32)).to(tl.int64)
    return before * stride + within + block + runs * (stride - run)


@triton.jit
def random_bits(key, offset, run, stride, start, SIZE: tl.constexpr, GAPS: tl.constexpr):
    """32 random bits for each of SIZE elements.

    Args:
        key: The key of the step; uint64.
        offset: Place of the first element of the segment; int64, as are the next three.
        run: Elements that lie side by side.
        stride: From the start of a run to that of the next one.
        start: Index of the first of the SIZE elements.
        SIZE: Their number.
        GAPS: Whether there is more than one run.
    """
    place = start + tl.arange(0, SIZE)
    if GAPS:
        place = _place(run, stride, start, SIZE)
    place = (offset + place).to(tl.uint64, bitcast=True)
    keys = key + (place >> 32) * 0x9E3779B97F4A7C15
    x = place.to(tl.uint32) + keys.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D + (keys >> 32).to(tl.uint32)
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
