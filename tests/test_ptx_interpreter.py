"""The interpreter of PTX: exact arithmetic, and a program for each fault that it has to catch."""

import operator
import random
import struct
from fractions import Fraction
from math import isfinite, isnan

import numpy as np
import pytest
import torch

from .harness.ptx import Memory, PtxError, programs, run
from .harness.ptx.machine import DTYPES
from .harness.ptx.operations import OPERATIONS

HEAD = """.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .u64 k_0, .param .u64 k_1)
.maxntid 128, 1, 1
{
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b64 %rd<20>;
ld.param.u64 %rd1, [k_0];
ld.param.u64 %rd2, [k_1];
mov.u32 %r1, %tid.x;
mov.u32 %r2, %ctaid.x;
mul.wide.u32 %rd3, %r1, 4;
mul.wide.u32 %rd4, %r2, 512;
add.s64 %rd5, %rd3, %rd4;
add.s64 %rd6, %rd1, %rd5;  // of the thread's number in a
add.s64 %rd7, %rd2, %rd5;  // and in b
"""
A, B = 0x7FFF_1234_0000, 0x1_0000_0000


def kernel(body):
    return programs(HEAD + body + "\nret;\n}\n")["k"]


def launch(body, *, grid=1, threads=128, writable=(True, True), shared_bytes=1024, **options):
    """The numbers of b afterwards; a and b hold their own indices before."""
    memory = Memory()
    numbers = np.arange(128 * grid, dtype=np.uint32)
    memory.allocate("a", A, numbers, writable[0])
    b = memory.allocate("b", B, numbers, writable[1])
    options |= {"threads": threads, "shared_bytes": shared_bytes}
    run(kernel(body), grid, struct.pack("QQ", A, B), memory, **options)
    return memory.read(b, np.uint32)


def apply(name, *operands):
    """An operation on arrays of its operands' types."""
    operation = OPERATIONS[name]
    with np.errstate(all="ignore"):
        result = operation.function(*operands)
    assert result.dtype == DTYPES[operation.result]
    return result


# Integers: each operation against Python's, which have no limit.


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def permuted(a, b, selector):
    octets = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    picked = [octets[selector >> 4 * i & 7] for i in range(4)]
    signs = [0xFF if octet & 0x80 else 0 for octet in picked]
    chosen = [signs[i] if selector >> 4 * i & 8 else picked[i] for i in range(4)]
    return int.from_bytes(bytes(chosen), "little")


INTEGERS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mad": lambda a, b, c: a * b + c,
    "div": truncated,
    "min": min,
    "max": max,
    "neg": operator.neg,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "not": operator.invert,
    "shl": lambda a, count: a << count,
    "shr": lambda a, count: a >> count,
    "bfe": lambda a, start, length: a >> start & ((1 << length) - 1),
    "prmt": permuted,
    "selp": lambda a, b, chosen: a if chosen else b,
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "setp": None,  # its name says which
}


def integer_operations():
    for name, (result, types, _) in OPERATIONS.items():
        of_floats = any("f" in part for part in name.split(".")[1:])
        if not of_floats and not name.startswith("cvta") and {result, *types} != {"pred"}:
            yield name


def integers(ty, n, draw):
    if ty == "pred":
        return [draw.random() < 0.5 for _ in range(n)]
    limits = np.iinfo(DTYPES[ty])
    edges = [limits.min, limits.min + 1, 0, 1, 2, limits.max // 2, limits.max - 1, limits.max]
    if limits.min < 0:
        edges += [-1, -2]
    return [
        draw.choice(edges) if draw.random() < 0.5 else draw.randint(limits.min, limits.max)
        for _ in range(n)
    ]


@pytest.mark.parametrize("name", list(integer_operations()))
def test_integers(name):
    result, types, _ = OPERATIONS[name]
    draw = random.Random(name)
    columns = [integers(ty, 300, draw) for ty in types]
    mnemonic, *modifiers = name.split(".")
    if mnemonic in ("shl", "shr", "bfe"):
        columns[1:] = [[draw.randrange(80) for _ in column] for column in columns[1:]]
    if mnemonic == "div":
        columns[1] = [b or 3 for b in columns[1]]
    reference = INTEGERS[mnemonic] or getattr(operator, modifiers[0])
    arrays = [np.array(column, DTYPES[ty]) for column, ty in zip(columns, types, strict=True)]
    got = apply(name, *arrays).tolist()
    expected = [reference(*row) for row in zip(*columns, strict=True)]
    if result != "pred":
        bits = DTYPES[result].itemsize * 8
        unsigned = np.array([number % 2**bits for number in expected], f"uint{bits}")
        expected = unsigned.view(DTYPES[result]).tolist()
    assert got == expected


def test_predicates():
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    assert apply("and.pred", a, b).tolist() == [False, False, False, True]
    assert apply("or.pred", a, b).tolist() == [False, True, True, True]
    assert apply("xor.pred", a, b).tolist() == [False, True, True, False]
    assert apply("not.pred", b).tolist() == [True, False, True, False]
    assert apply("mov.pred", b).tolist() == [False, True, False, True]


def test_division_by_zero():
    with pytest.raises(PtxError, match="division by zero"):
        apply("div.s64", np.array([1, 1]), np.array([1, 0]))


# Floats: each operation against the exact result, rounded to nearest even by integers.


def rounded(exact, dtype):
    precision, least = (24, -149) if dtype == np.float32 else (53, -1074)
    n, d = abs(exact).numerator, abs(exact).denominator
    exponent = max(n.bit_length() - d.bit_length() - precision, least)
    if Fraction(n, d) >= Fraction(2) ** (exponent + precision):
        exponent += 1
    units = round(Fraction(n, d) / Fraction(2) ** exponent)  # ties go to even
    value = units * Fraction(2) ** exponent
    top = Fraction(float(np.finfo(dtype).max))
    return dtype((-1 if exact < 0 else 1) * (float("inf") if value > top else float(value)))


def floats(n, dtype, seed):
    """Half of them of any bits, half of them near 1."""
    rng = np.random.default_rng(seed)
    bits = dtype().itemsize * 8
    of_any_bits = rng.integers(0, 2**bits, n, f"uint{bits}").view(dtype)
    with np.errstate(all="ignore"):
        return np.where(rng.random(n) < 0.5, of_any_bits, rng.standard_normal(n).astype(dtype))


EXACT = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "fma": lambda a, b, c: a * b + c,
    "rcp": lambda a: 1 / a,
    "cvt": lambda a: a,
}
ROUNDED = [f"{name}.rn.{ty}" for name in ("add", "sub", "mul", "div") for ty in ("f32", "f64")]
ROUNDED += ["fma.rn.f32", "rcp.rn.f64", "cvt.rn.f32.f64"]
OF_INTEGERS = [name for name in OPERATIONS if name.startswith("cvt.rn.f") and name[-3] in "su"]


@pytest.mark.parametrize("name", ROUNDED)
def test_floats_are_rounded_once(name):
    result, types, _ = OPERATIONS[name]
    arrays = [floats(2000, DTYPES[ty].type, i) for i, ty in enumerate(types)]
    if name.startswith("fma"):
        arrays[2][::3] = -apply("mul.rn.f32", *arrays[:2])[::3]  # most of the sum cancels
        # Beside midpoints of float32, nearer than float64 tells.
        arrays[0][:4], arrays[1][:4] = (24929, 24929, 4097, -4097), (673, -673, 4099, 4099)
        arrays[2][:4] = (2**-40, -(2**-40), -(2**-40), 2**-40)
    if name.startswith("cvt"):
        arrays[0] = np.where(np.arange(2000) % 2, arrays[0], arrays[0] % 2)
    tried = 0
    for got, *row in zip(apply(name, *arrays), *arrays, strict=True):
        numbers = [float(x) for x in row]
        if not all(map(isfinite, numbers)) or (name[:3] in ("div", "rcp") and numbers[-1] == 0):
            continue
        exact = EXACT[name.partition(".")[0]](*map(Fraction, numbers))
        assert got == (rounded(exact, DTYPES[result].type) if exact else 0), row
        tried += 1
    assert tried > 1500


@pytest.mark.parametrize("name", OF_INTEGERS)
def test_integers_to_floats_are_rounded_once(name):
    result, (ty,), _ = OPERATIONS[name]
    numbers = integers(ty, 500, random.Random(name))
    got = apply(name, np.array(numbers, DTYPES[ty]))
    dtype = DTYPES[result].type
    assert got.tolist() == [rounded(Fraction(n), dtype) if n else 0 for n in numbers]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_roots_are_rounded_once(dtype):
    numbers = np.abs(floats(2000, dtype, 3))
    roots = apply(f"sqrt.rn.f{dtype().itemsize * 8}", numbers)
    for number, root in zip(numbers, roots, strict=True):
        if isfinite(number) and number > 0:
            # Between the squares of the midpoints to both neighbors.
            below, above = (Fraction(float(np.nextafter(root, dtype(x)))) for x in (0, np.inf))
            exact, near = Fraction(float(number)), Fraction(float(root))
            assert (below + near) ** 2 <= 4 * exact <= (above + near) ** 2


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_pairs_of_floats(name):
    a, b = floats(1000, np.float32, 1), floats(1000, np.float32, 2)
    got = apply(f"{name}.rn.f32x2", a.view(np.uint64), b.view(np.uint64)).view(np.uint32)
    assert (got == apply(f"{name}.rn.f32", a, b).view(np.uint32)).all()
    with_constant = apply(f"{name}.rn.f32x2", a.view(np.uint64), b[:2].view(np.uint64))
    alternating = np.tile(b[:2], 500)
    expected = apply(f"{name}.rn.f32", a, alternating).view(np.uint32)
    assert (with_constant.view(np.uint32) == expected).all()


def test_float32_makes_one_nan():
    infinity = np.array([np.inf, 1], np.float32)
    assert apply("sub.rn.f32", infinity, infinity).view(np.uint32).tolist() == [0x7FFFFFFF, 0]
    payload = np.array([0xFFC12345], np.uint32).view(np.float32)
    assert apply("mul.rn.f32", payload, payload).view(np.uint32).tolist() == [0x7FFFFFFF]


COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


@pytest.mark.parametrize("ty", ["f32", "f64"])
@pytest.mark.parametrize("name", [*COMPARISONS, *(f"{c}u" for c in COMPARISONS), "num", "nan"])
def test_comparisons_of_floats(name, ty):
    numbers = [0.0, -0.0, 1.0, 2.0, -1.0, float("inf"), float("-inf"), float("nan")]
    pairs = [(a, b) for a in numbers for b in numbers]
    got = apply(f"setp.{name}.{ty}", *np.array(pairs, DTYPES[ty]).T)
    for (a, b), result in zip(pairs, got.tolist(), strict=True):
        unordered = isnan(a) or isnan(b)
        if name in ("num", "nan"):
            expected = unordered == (name == "nan")
        else:
            expected = name.endswith("u") if unordered else COMPARISONS[name[:2]](a, b)
        assert result == expected, (a, b)


NARROW = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("ty", NARROW)
def test_narrow_floats_widen(ty):
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = torch.from_numpy(bits.view(np.int16)).view(NARROW[ty])
    for wide, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        got = apply(f"cvt.{wide}.{ty}", bits.view(DTYPES[ty]))
        expected = numbers.to(dtype).numpy()
        assert np.array_equal(got, expected, equal_nan=True)
        assert (np.signbit(got) == np.signbit(expected))[~np.isnan(expected)].all()


@pytest.mark.parametrize("ty", NARROW)
def test_floats_narrow(ty):
    # The midpoints between narrow numbers, their neighbors, and any numbers.
    bits = np.arange(2**16, dtype=np.uint16).view(np.int16)
    exact = torch.from_numpy(bits).view(NARROW[ty]).float().numpy().view(np.uint32)
    half = np.uint32(1 << (12 if ty == "f16" else 15))
    numbers = [exact, exact + half, exact + half - 1, exact + half + 1]
    x = np.concatenate([*(n.view(np.float32) for n in numbers), floats(100_000, np.float32, 4)])
    expected = torch.from_numpy(x).to(NARROW[ty]).view(torch.int16).numpy().view(np.uint16)
    expected = np.where(np.isnan(x), 0x7FFF, expected)
    assert (apply(f"cvt.rn.{ty}.f32", x) == expected).all()
    high, low = expected[::2].astype(np.uint32), expected[1::2]
    assert (apply(f"cvt.rn.{ty}x2.f32", x[::2], x[1::2]) == high << 16 | low).all()


def test_floats_to_integers():
    most, least = 2**63 - 1, -(2**63)
    expected = {0.5: 0, -0.5: 0, 1.99: 1, -1.99: -1, 2.0**63: most, -(2.0**63): least}
    expected |= {1e30: most, -1e30: least, 9.2e18: int(9.2e18), -9.2e18: int(-9.2e18)}
    expected |= {float("inf"): most, float("-inf"): least, float("nan"): least}
    assert apply("cvt.rzi.s64.f64", np.array([*expected])).tolist() == [*expected.values()]
    narrow = np.array([*expected], np.float32)
    got = apply("cvt.rzi.s64.f32", narrow).tolist()
    assert got == apply("cvt.rzi.s64.f64", narrow.astype(np.float64)).tolist()


# Programs. `a` and `b` have a number for each thread, its index.

REVERSE = """ld.global.u32 %r3, [%rd7]; {between}
xor.b64 %rd9, %rd5, {mask}; add.s64 %rd10, %rd2, %rd9; st.global.u32 [%rd10], %r3;"""
SHARED_REVERSE = """mul.lo.s32 %r3, %r1, 4; st.shared.b32 [%r3], %r1; {between}
xor.b32 %r4, %r3, 508; ld.shared.b32 %r5, [%r4]; st.global.u32 [%rd7], %r5;"""
WRITE_ALL = "st.global.u32 [%rd2], %r1;"
OF_ONE_BLOCK = "add.s64 %rd10, %rd2, %rd3; st.global.u32 [%rd10], %r1;"
# All threads of a warp read the place of its first, which then writes it.
WARP_READS = """and.b64 %rd9, %rd5, {mask}; add.s64 %rd10, %rd2, %rd9;
{first} setp.eq.s64 %p1, %rd9, %rd5; @%p1 st.global.u32 [%rd10], 7; {second}"""
READ = "ld.global.u32 %r3, [%rd10];"

PROGRAMS = {
    "copy": ("ld.global.u32 %r3, [%rd6]; st.global.u32 [%rd7], %r3;", lambda b: b, {"grid": 3}),
    "blocks-in-turn": (
        "ld.global.u32 %r3, [%rd6]; add.s32 %r3, %r3, %r3; st.global.u32 [%rd7], %r3;",
        lambda b: 2 * b,
        {"grid": 5, "at_once": 2},
    ),
    "some-blocks": (
        "add.s32 %r3, %r2, 1000; st.global.u32 [%rd7], %r3;",
        lambda b: np.where(b // 128 == 2, 1002, b),
        {"grid": 5, "blocks": [2]},
    ),
    "grid": (
        "mov.u32 %r3, %nctaid.x; st.global.u32 [%rd7], %r3;",
        lambda b: 0 * b + 3,
        {"grid": 3},
    ),
    "divergent-loop": (
        """mov.u32 %r3, 0; mov.u32 %r4, 0;
$L1: setp.ge.s32 %p1, %r3, %r1; @%p1 bra $L2;
add.s32 %r3, %r3, 1; and.b32 %r5, %r3, 1; setp.eq.s32 %p2, %r5, 0; @%p2 bra $L1;
add.s32 %r4, %r4, 3; bra.uni $L1;
$L2: st.global.u32 [%rd7], %r4;""",
        lambda b: 3 * ((b + 1) // 2),
        {},
    ),
    "guards": (
        "setp.lt.s32 %p1, %r1, 5; @%p1 mov.u32 %r3, 1; @!%p1 mov.u32 %r3, 2; "
        "st.global.u32 [%rd7], %r3;",
        lambda b: np.where(b < 5, 1, 2),
        {},
    ),
    "guarded-return": (
        "setp.lt.s32 %p1, %r1, 5; @%p1 ret; st.global.u32 [%rd7], 9;",
        lambda b: np.where(b < 5, b, 9),
        {},
    ),
    "vectors": (
        """mul.wide.u32 %rd8, %r1, 8; add.s64 %rd9, %rd1, %rd8; add.s64 %rd10, %rd2, %rd8;
setp.ge.s32 %p1, %r1, 64; @%p1 ret;
ld.global.v2.u32 {%r3, %r4}, [%rd9]; st.global.v2.u32 [ %rd10 + 0 ], {%r4, %r3};""",
        lambda b: b ^ 1,
        {},
    ),
    "halves": (
        "mov.b32 {%h1, %h2}, %r1; mov.b32 %r3, {%h2, %h1}; st.global.u32 [%rd7], %r3;",
        lambda b: b << 16,
        {},
    ),
    "registers-of-braces": (
        """shl.b32 %r3, %r1, 16; { .reg .b16 tmp; mov.b32 {tmp, %h1}, %r3; }
{ .reg .b16 tmp; mov.b32 {_, tmp}, %r3; cvt.u32.u16 %r4, tmp; } st.global.u32 [%rd7], %r4;""",
        lambda b: b,
        {},
    ),
    "sign-extension": (
        "st.global.u16 [%rd7], -2; ld.global.s16 %r3, [%rd7]; st.global.u32 [%rd7], %r3;",
        lambda b: 0 * b - 2,
        {},
    ),
    "immediates": (
        """mov.f32 %f1, 0f3F800000; add.rn.f32 %f2, %f1, 0f40000000; mov.b32 %r3, %f2;
xor.b32 %r4, %r3, 0x1; sub.s32 %r4, %r4, -1; st.global.u32 [%rd7], %r4;""",
        lambda b: 0 * b + 0x40400002,
        {},
    ),
    "comments-and-directives": (
        '/* ret;\n ret; */ .pragma "nounroll";\n.loc 1 2 3\n// ret;\nst.global.u32 [%rd7], 1;',
        lambda b: 0 * b + 1,
        {},
    ),
    "reverse-in-memory": (REVERSE.format(between="bar.sync 0;", mask=508), lambda b: b ^ 127, {}),
    "reverse-in-shared-memory": (
        SHARED_REVERSE.format(between="bar.sync 0;"),
        lambda b: (b % 128) ^ 127,
        {"grid": 20},
    ),
    "address-of-shared-memory": (
        """mov.b32 %r3, smem; shl.b32 %r4, %r1, 2; add.s32 %r3, %r3, %r4;
st.shared.b32 [%r3+512], %r1; ld.shared.b32 %r5, [%r3+512]; st.global.u32 [%rd7], %r5;""",
        lambda b: b,
        {},
    ),
    "barrier-after-returns": (
        "setp.ge.s32 %p1, %r1, 64; @%p1 ret; bar.sync 0; st.global.u32 [%rd7], 1;",
        lambda b: np.where(b < 64, 1, b),
        {},
    ),
    "generic-address-of-parameters": (
        "mov.b64 %rd9, k_0; cvta.param.u64 %rd10, %rd9; ld.u64 %rd11, [%rd10]; "
        "cvt.u32.u64 %r3, %rd11; st.global.u32 [%rd7], %r3;",
        lambda b: 0 * b + A % 2**32,
        {},
    ),
    "fewer-threads": (
        "st.global.u32 [%rd7], 5;",
        lambda b: np.where(b < 33, 5, b),
        {"threads": 33},
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    body, expected, options = PROGRAMS[name]
    b = np.arange(128 * options.get("grid", 1), dtype=np.uint32)
    assert launch(body, **options).tolist() == expected(b).tolist()


# What is told of each fault, the program, and the options of its launch.
FAULTS = {
    # Bounds and alignment.
    "past-the-end": ("out of bounds.*end of a", "ld.global.u32 %r3, [%rd6+4];", {}),
    "before-the-start": ("out of bounds", "ld.global.u32 %r3, [%rd6+-4];", {}),
    "before-all-memory": ("before all memory", "mov.u64 %rd9, 64; ld.global.u32 %r3, [%rd9];", {}),
    "store-past-the-end": ("out of bounds", "st.global.u32 [%rd7+4], %r1;", {}),
    "misaligned-vector": ("misaligned", "ld.global.v2.u32 {%r3, %r4}, [%rd6];", {}),
    "misaligned-store": ("misaligned", "st.global.u32 [%rd7+2], %r1;", {}),
    "store-to-what-is-read-only": (
        "a is not to be written",
        "st.global.u32 [%rd6], %r1;",
        {"writable": (False, True)},
    ),
    "past-the-parameters": ("out of bounds", "ld.param.u64 %rd9, [k_1+8];", {}),
    "parameters-as-global": (
        "not in global",
        "mov.b64 %rd9, k_0; cvta.param.u64 %rd10, %rd9; ld.global.u64 %rd11, [%rd10];",
        {},
    ),
    "parameters-written": (
        "not to be written",
        "mov.b64 %rd9, k_0; cvta.param.u64 %rd10, %rd9; st.u64 [%rd10], %rd9;",
        {},
    ),
    "past-shared-memory": (
        "out of bounds.*shared",
        "shl.b32 %r3, %r1, 4; st.shared.u32 [%r3], %r1;",
        {"grid": 2},
    ),
    "before-shared-memory": (
        "out of bounds",
        "shl.b32 %r3, %r1, 2; st.shared.u32 [%r3+-4], %r1;",
        {"grid": 2},
    ),
    "misaligned-in-shared-memory": ("misaligned", "st.shared.u32 [smem+2], %r1;", {}),
    "no-shared-memory": ("out of bounds", "st.shared.u32 [smem], %r1;", {"shared_bytes": 0}),
    # Races.
    "one-place-written-by-all": ("two threads write the same place", WRITE_ALL, {}),
    "one-place-written-by-two-blocks": ("two blocks", OF_ONE_BLOCK, {"grid": 2}),
    "one-place-written-by-blocks-in-turn": ("two blocks", OF_ONE_BLOCK, {"grid": 2, "at_once": 1}),
    "reverse-without-barrier": ("no barrier", REVERSE.format(between="", mask=508), {}),
    "reverse-of-two-blocks": (
        "two blocks",
        REVERSE.format(between="bar.sync 0;", mask=512),
        {"grid": 2},
    ),
    "reverse-of-blocks-in-turn": (
        "two blocks",
        REVERSE.format(between="bar.sync 0;", mask=512),
        {"grid": 2, "at_once": 1},
    ),
    "shared-reverse-without-barrier": ("no barrier", SHARED_REVERSE.format(between=""), {}),
    "shared-memory-written-by-all": ("two threads write", "st.shared.u32 [smem], %r1;", {}),
    "shared-memory-written-after-reads": (
        "shared memory: one thread reads",
        """setp.eq.s32 %p1, %r1, 0; @%p1 st.shared.u32 [smem], %r1; bar.sync 0;
ld.shared.u32 %r3, [smem]; @%p1 st.shared.u32 [smem], %r1;""",
        {"threads": 32},
    ),
    "neighbors": (
        "no barrier",
        """ld.global.u32 %r3, [%rd7]; setp.eq.s32 %p1, %r1, 127; @%p1 bra $E;
st.global.u32 [%rd7+4], %r3;\n$E:""",
        {},
    ),
    "part-of-a-word": (
        "no barrier",
        """ld.global.u16 %h1, [%rd7+2]; setp.eq.s32 %p1, %r1, 64;
@%p1 st.global.v4.u32 [%rd2], {%r1, %r1, %r1, %r1};""",
        {},
    ),
    "write-after-reads-of-two-warps": (
        "no barrier",
        WARP_READS.format(mask=-256, first=READ, second=""),
        {},
    ),
    "read-after-a-write-of-the-warp": (
        "no barrier",
        WARP_READS.format(mask=-128, first="", second=READ),
        {},
    ),
    # Barriers and the end.
    "barrier-for-some": (
        "not all threads",
        "setp.eq.s32 %p1, %r1, 5; @%p1 bra $E; bar.sync 0;\n$E: st.global.u32 [%rd7], %r1;",
        {},
    ),
    "guarded-barrier": ("not all threads", "setp.eq.s32 %p1, %r1, 5; @%p1 bar.sync 0;", {}),
    "endless": ("does not end", "$L: bra $L;", {"limit": 50}),
    # What nothing has written.
    "unwritten-register": ("read before it is written", "st.global.u32 [%rd7], %r9;", {}),
    "register-written-by-some": (
        "read before it is written",
        "setp.eq.s32 %p1, %r1, 5; @%p1 mov.u32 %r9, 1; st.global.u32 [%rd7], %r9;",
        {},
    ),
    "register-of-other-braces": (
        "read before it is written",
        """{ .reg .b16 tmp; mov.b32 {tmp, %h1}, %r1; }
{ .reg .b16 tmp; cvt.u32.u16 %r4, tmp; }""",
        {},
    ),
    "unwritten-shared-memory": (
        "nothing has written",
        "shl.b32 %r3, %r1, 2; ld.shared.u32 %r6, [%r3];",
        {},
    ),
    "shared-memory-of-another-block": (
        "nothing has written",
        "setp.eq.s32 %p1, %r2, 0; @%p1 bra $L; ld.shared.u32 %r6, [smem]; ret;\n"
        "$L: setp.eq.s32 %p2, %r1, 0; @%p2 st.shared.u32 [smem], %r1;",
        {"grid": 2, "at_once": 1},
    ),
    # What is not known.
    "towards-zero": ("not known", "add.rz.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "flushed-subnormals": ("not known", "add.rn.ftz.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "no-rounding": ("not known", "add.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "approximate-division": ("not known", "div.full.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "approximate-root": ("not known", "sqrt.approx.f32 %f2, 0f3F800000;", {}),
    "saturation": ("not known", "add.rn.sat.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "instruction": ("not known", "popc.b32 %r3, %r1;", {}),
    "another-barrier": ("not known", "bar.sync 1;", {}),
    "bypass-of-a-cache": ("not known", "ld.global.cv.u32 %r3, [%rd6];", {}),
    "local-memory": ("not known", "ld.local.u32 %r3, [%rd6];", {}),
    "single-bytes": ("single bytes", "st.global.u8 [%rd7], %h1;", {}),
    "special-register": ("not known", "mov.u32 %r3, %clock;", {}),
    "directive": ("directive", ".shared .b32 x;", {}),
    "statement": ("not understood", "add.s32 %r3, {%r1, %r1;", {}),
    "braces-within-braces": ("within braces", "{ .reg .b16 x; { .reg .b16 y; } }", {}),
    "label": ("NOWHERE", "bra $NOWHERE;", {}),
    # What does not fit.
    "immediate-of-another-width": ("does not fit", "mov.b16 %h1, 65536;", {}),
    "integer-for-a-float": ("not known", "add.rn.f32 %f1, 1, 0f3F800000;", {}),
    "float-for-an-integer": ("0f3F800000 is not", "add.s32 %r3, %r1, 0f3F800000;", {}),
    "narrow-register": ("%h1 of 16 bits as 32 bits", "mov.u32 %h1, %r1;", {}),
    "predicate-as-number": ("%p1 of 1 bits", "setp.eq.s32 %p1, %r1, 0; mov.u32 %r3, %p1;", {}),
    "number-as-predicate": ("%r1 of 32 bits as 1 bits", "not.pred %p1, %r1;", {}),
    "number-of-registers": ("are not 2", "ld.global.v2.u32 {%r3}, [%rd6];", {}),
    "number-of-operands": ("argument", "add.s32 %r3, %r1;", {}),
    "threads": ("129 threads in a block, made for 128", "", {"threads": 129}),
    "blocks": ("outside of the grid", "", {"blocks": [1]}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    told, body, options = FAULTS[name]
    with pytest.raises(PtxError, match=told):
        launch(body, **options)


@pytest.mark.parametrize(("threads", "warps"), [(128, 4 * 3), (33, 3)])
def test_reads_of_a_warp_before_its_write_are_counted(threads, warps):
    memory = Memory()
    for name, address in (("a", A), ("b", B)):
        memory.allocate(name, address, np.arange(128 * 3, dtype=np.uint32), True)
    program = kernel(WARP_READS.format(mask=-128, first=READ, second=""))
    run(program, 3, struct.pack("QQ", A, B), memory, threads=threads)
    assert memory.same_warp_reads_before_writes == 2 * warps  # the two pairs of bytes of a number


def test_launches_do_not_race_with_each_other():
    memory = Memory()
    for name, address in (("a", A), ("b", B)):
        memory.allocate(name, address, np.arange(256, dtype=np.uint32), True)
    for body in (OF_ONE_BLOCK, "xor.b64 %rd3, %rd3, 508; " + OF_ONE_BLOCK):
        run(kernel(body), 1, struct.pack("QQ", A, B), memory, threads=128)
    assert len(memory.regions) == 2


def test_bounds_are_of_whole_accesses():
    memory = Memory()
    memory.allocate("b", B, bytes(12), True)
    load = kernel("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd2];")
    with pytest.raises(PtxError, match="-12 from the end of b"):
        run(load, 1, struct.pack("QQ", A, B), memory, threads=1)


def test_coverage():
    program = kernel(
        """setp.lt.s32 %p1, %r1, 900; @%p1 mov.u32 %r3, 1; @!%p1 mov.u32 %r3, 2;
@!%p1 bra $E; @%p1 bra $E; neg.s32 %r3, %r1;\n$E:"""
    )
    assert not program.executed
    assert program.coverage() == (0, 16)
    run(program, 1, bytes(16), Memory(), threads=128)
    assert program.executed
    assert program.coverage() == (14, 16)
    assert program.opcodes() >= {"ld.param.u64", "bra", "setp.lt.s32", "mov.u32", "ret"}
    assert "neg.s32" not in program.opcodes()


def test_parameters():
    text = HEAD.replace(
        ".param .u64 k_0, .param .u64 k_1",
        ".param .u8 k_0, .param .u64 .ptr .global .align 1 k_1, .param .align 16 .b8 k_2[40]",
    )
    program = programs(text + "ret;\n}\n.entry other()\n{\nret;\n}\n")["k"]
    assert program.kernel.params == {"k_0": (0, 1), "k_1": (8, 8), "k_2": (16, 40)}
    with pytest.raises(PtxError, match="55 bytes of parameters for 56"):
        run(program, 1, bytes(55), Memory(), threads=1)
    with pytest.raises(PtxError, match="a parameter that is not known"):
        programs(text.replace(".u8 k_0", ".u8 k_0[]") + "ret;\n}\n")
    with pytest.raises(PtxError, match="variables of a module"):
        programs(".global .b32 x;\n" + HEAD + "ret;\n}\n")


def test_memory_of_the_host():
    a, b = torch.arange(128, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    memory = Memory()
    memory.over_host("a", a.data_ptr(), 512, False)
    memory.over_host("nothing", a.data_ptr(), 0, True)
    region = memory.over_host("b", b[3:].data_ptr(), 512, True)
    arguments = struct.pack("QQ", a.data_ptr(), b[3:].data_ptr())
    copy = kernel(PROGRAMS["copy"][0])
    run(copy, 1, arguments, memory, threads=128)
    assert b.tolist() == [0] * 3 + a.tolist() + [0] * 125
    assert memory.read(region, np.int32).tolist() == a.tolist()
    memory.over_host("part of b", b[5:].data_ptr(), 8, True)
    with pytest.raises(PtxError, match="b and part of b overlap"):
        run(copy, 1, arguments, memory, threads=128)


def test_a_fault_names_its_line():
    line = HEAD.count("\n") + 2
    with pytest.raises(PtxError, match=rf"line {line}: st\.global\.u32 \[%rd7\+4\], %r1"):
        launch("\nst.global.u32 [%rd7+4], %r1;")
