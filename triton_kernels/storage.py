"""How the Triton kernels read the tables of csrc/, and load and store the tensors of a segment.

A whole, aligned block is moved in 128-bit words.
"""

import triton
import triton.language as tl

from ..options import OPTION_NAMES
from ..state import ROLES
from .rounding import join, master_of, round_stochastically, split

# The 8-byte words of Segment in csrc/segments.h: the address of each role, then four integers.
PARAM = tl.constexpr(ROLES.index("param"))
GRAD = tl.constexpr(ROLES.index("grad"))
STEP = tl.constexpr(ROLES.index("step"))
EXP_AVG = tl.constexpr(ROLES.index("exp_avg"))
EXP_AVG_SQ = tl.constexpr(ROLES.index("exp_avg_sq"))
MAX_EXP_AVG_SQ = tl.constexpr(ROLES.index("max_exp_avg_sq"))
PARAM_REMAINDER = tl.constexpr(ROLES.index("param_remainder"))
MASTER_PARAM = tl.constexpr(ROLES.index("master_param"))
ADDRESSES = tl.constexpr(len(ROLES))
NUMEL = tl.constexpr(len(ROLES))
FIRST = tl.constexpr(len(ROLES) + 1)
COEFFICIENTS_INDEX = tl.constexpr(len(ROLES) + 2)
OPTIONS_INDEX = tl.constexpr(len(ROLES) + 3)
SEGMENT_WORDS = tl.constexpr(len(ROLES) + 4)

# The words of StepCoefficients, as wide as its arithmetic type: seven numbers, then the kind of
# update as int32, and padding.
KIND = tl.constexpr(7)
COEFFICIENTS_WORDS = tl.constexpr(8)

# The words of DeviceOptions: the options as float64, then four addresses and a flag as int64.
NAMES = tl.constexpr(OPTION_NAMES)
LR = tl.constexpr(len(OPTION_NAMES))
LR_IS_FLOAT64 = tl.constexpr(len(OPTION_NAMES) + 1)
GRAD_SCALE = tl.constexpr(len(OPTION_NAMES) + 2)
FOUND_INF = tl.constexpr(len(OPTION_NAMES) + 3)
CLIP = tl.constexpr(len(OPTION_NAMES) + 4)
OPTIONS_WORDS = tl.constexpr(len(OPTION_NAMES) + 5)

# The words of Draw in csrc/random.h.
KEY = tl.constexpr(0)
STEP_KEY = tl.constexpr(1)
OFFSET = tl.constexpr(2)
RUN = tl.constexpr(3)
STRIDE = tl.constexpr(4)
DRAW_WORDS = tl.constexpr(6)


@triton.jit
def addresses_of(segment):
    """Addresses of all roles, and whether every array is aligned to 16 bytes."""
    addresses = ()
    bits = tl.full((), 0, tl.int64)
    for role in tl.static_range(ADDRESSES):
        address = tl.load(segment + role)
        addresses += (address,)
        if role != STEP:  # a single number, not an array
            bits |= address
    return addresses, bits % 16 == 0


@triton.jit
def _array(address, start, TYPE: tl.constexpr, SIZE: tl.constexpr, WHOLE: tl.constexpr):
    first = address.to(tl.pointer_type(TYPE)) + start
    if WHOLE:
        first = tl.multiple_of(first, 16)
    return first + tl.arange(0, SIZE)


@triton.jit
def load(
    addresses,
    start,
    mask,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    MASTER: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SIZE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Load the block arguments of `update`, converted to the arithmetic type."""
    T: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32  # noqa: SIM300
    p = tl.load(_array(addresses[PARAM], start, P, SIZE, WHOLE), mask=mask)
    if MASTER == "split":
        low = _array(addresses[PARAM_REMAINDER], start, tl.int16, SIZE, WHOLE)
        p = join(p, tl.load(low, mask=mask))
    elif MASTER == "float32":
        copy = _array(addresses[MASTER_PARAM], start, tl.float32, SIZE, WHOLE)
        p = master_of(p, tl.load(copy, mask=mask))
    else:
        p = p.to(T)
    g = tl.load(_array(addresses[GRAD], start, G, SIZE, WHOLE), mask=mask).to(T)
    m = tl.load(_array(addresses[EXP_AVG], start, M, SIZE, WHOLE), mask=mask).to(T)
    v = tl.load(_array(addresses[EXP_AVG_SQ], start, M, SIZE, WHOLE), mask=mask).to(T)
    s = v
    if AMSGRAD:
        s = tl.load(_array(addresses[MAX_EXP_AVG_SQ], start, M, SIZE, WHOLE), mask=mask).to(T)
    return p, g, m, v, s


@triton.jit
def _store_array(
    address, start, mask, values, TYPE: tl.constexpr, WHOLE: tl.constexpr, WORDS: tl.constexpr
):
    """Store a block. The threads of a whole one hold WORDS neighbouring 128-bit words: 1, 2 or 4.

    Each store takes one word of every thread. A single one for all words would have to exchange
    them between the threads first, through shared memory.
    """
    x = values.to(TYPE)
    SIZE: tl.constexpr = x.shape[0]
    if WORDS == 1 or not WHOLE:
        tl.store(_array(address, start, TYPE, SIZE, WHOLE), x, mask=mask)
    else:
        first = tl.multiple_of(address.to(tl.pointer_type(TYPE)) + start, 16)
        WIDTH: tl.constexpr = 128 // TYPE.primitive_bitwidth
        THREADS: tl.constexpr = SIZE // (WORDS * WIDTH)
        thread = tl.arange(0, THREADS)[:, None] * (WORDS * WIDTH) + tl.arange(0, WIDTH)[None, :]
        if WORDS == 2:
            even, odd = tl.split(x.reshape(THREADS, 2, WIDTH).permute(0, 2, 1))
            tl.store(first + thread, even)
            tl.store(first + WIDTH + thread, odd)
        else:
            low, high = tl.split(x.reshape(THREADS, 2, 2, WIDTH).permute(0, 2, 3, 1))
            for half in tl.static_range(2):
                even, odd = tl.split((low if half == 0 else high).permute(0, 2, 1))
                tl.store(first + 2 * half * WIDTH + thread, even)
                tl.store(first + (2 * half + 1) * WIDTH + thread, odd)


@triton.jit
def store(
    addresses,
    start,
    mask,
    p,
    m,
    v,
    s,
    random,
    P: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    MASTER: tl.constexpr,
    AMSGRAD: tl.constexpr,
    DRAWS_PARAM: tl.constexpr,
    DRAWS_EXP_AVG_SQ: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Store the results of `update`, converted to the stored types.

    Returns:
        p, rounded if DRAWS_PARAM.
    """
    # In a whole block, a thread holds as many elements as fill a word in the narrowest type.
    BITS: tl.constexpr = min(P.primitive_bitwidth, min(G.primitive_bitwidth, M.primitive_bitwidth))
    WORDS: tl.constexpr = M.primitive_bitwidth // BITS
    x = p
    if MASTER == "split":
        x, low = split(p)
        _store_array(addresses[PARAM_REMAINDER], start, mask, low, tl.int16, WHOLE, 16 // BITS)
    elif MASTER == "float32":
        _store_array(addresses[MASTER_PARAM], start, mask, p, tl.float32, WHOLE, 32 // BITS)
    elif DRAWS_PARAM:
        x = round_stochastically(p, random >> 16)
    if DRAWS_EXP_AVG_SQ:
        v = round_stochastically(v, random & 0xFFFF)
    _store_array(addresses[PARAM], start, mask, x, P, WHOLE, P.primitive_bitwidth // BITS)
    _store_array(addresses[EXP_AVG], start, mask, m, M, WHOLE, WORDS)
    _store_array(addresses[EXP_AVG_SQ], start, mask, v, M, WHOLE, WORDS)
    if AMSGRAD:
        _store_array(addresses[MAX_EXP_AVG_SQ], start, mask, s, M, WHOLE, WORDS)
    return x.to(p.dtype) if DRAWS_PARAM else p
