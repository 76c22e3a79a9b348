"""The PTX interpreter's arithmetic is exact: each operation against Python's numbers."""

import operator
import random
from fractions import Fraction
from functools import partial
from math import isfinite, isnan

import numpy as np
import pytest
import torch

from .harness.ptx import PtxError
from .harness.ptx.machine import DTYPES
from .harness.ptx.operations import OPERATIONS


def apply(name, *operands):
    """An operation on arrays of its operands' types."""
    operation = OPERATIONS[name]
    with np.errstate(all="ignore"):
        result = operation.function(*operands)
    assert result.dtype == DTYPES[operation.result]
    return result


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def permuted(a, b, selector):
    octets = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    picked = [octets[selector >> 4 * i & 7] for i in range(4)]
    signs = [0xFF if octet & 0x80 else 0 for octet in picked]
    chosen = [signs[i] if selector >> 4 * i & 8 else picked[i] for i in range(4)]
    return int.from_bytes(bytes(chosen), "little")


def extracted(a, start, length, is_signed=False):
    field = a >> start & ((1 << length) - 1)
    if not is_signed or length == 0:
        return field
    if start + length >= 32:
        return a >> start
    return field - (1 << length) if field >> length - 1 else field


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
    "bfe": extracted,
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
    if name == "bfe.s32":
        reference = partial(extracted, is_signed=True)
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
        # Near midpoints of float32, closer than float64 can show.
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


def test_float32_operations_give_the_canonical_nan():
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


@pytest.mark.parametrize("ty", ["f32", "f64"])
def test_a_negated_float_differs_in_its_sign_alone(ty):
    numbers = np.array([0.0, -0.0, 1.5, -2.0, float("inf"), float("nan")], DTYPES[ty])
    bits = f"u{numbers.itemsize}"
    assert (
        apply(f"neg.{ty}", numbers).view(bits) ^ numbers.view(bits)
        == 1 << (8 * numbers.itemsize - 1)
    ).all()


@pytest.mark.parametrize("ty", ["f32", "f64"])
def test_the_smaller_of_two_floats(ty):
    nan, infinity = float("nan"), float("inf")
    pairs = [(1.0, 2.0), (2.0, 1.0), (-0.0, 0.0), (0.0, -0.0), (-infinity, 1.0), (nan, 1.0)]
    pairs += [(1.0, nan), (nan, nan)]
    got = apply(f"min.{ty}", *np.array(pairs, DTYPES[ty]).T)
    expected = np.array([1.0, 1.0, -0.0, -0.0, -infinity, 1.0, 1.0, nan], DTYPES[ty])
    np.testing.assert_array_equal(got, expected)
    assert (np.signbit(got) == np.signbit(expected))[:-1].all()


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
