"""The instructions that compute one register from others, by full name.

A name that is not here is not known: so is every rounding other than to nearest even.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .arithmetic import (
    canonical,
    divide,
    extract_bits,
    extract_signed_bits,
    fma32,
    from_bf16,
    pack,
    permute_bytes,
    shift_left,
    shift_right,
    smaller,
    to_bf16,
    to_f16,
    to_int64,
)
from .machine import DTYPES, PARAMETERS


class Operation(NamedTuple):
    result: str
    operands: tuple[str, ...]
    function: Callable


OPERATIONS: dict[str, Operation] = {}


def _add(name, result, operands, function):
    OPERATIONS[name] = Operation(result, tuple(operands.split()), function)


def _as(ty):
    return lambda a: a.astype(DTYPES[ty])


def _rounded(function, ty):
    return function if ty == "f64" else lambda *operands: canonical(function(*operands))


def _pairwise(function):
    """Apply an operation to two float32 numbers in each 64 bits."""

    def on_pairs(*operands):
        pairs = (a.view(np.float32).reshape(-1, 2) for a in operands)
        return canonical(function(*pairs)).view(np.uint64).reshape(-1)

    return on_pairs


def _unordered(a, b):
    return (a != a) | (b != b)


def _widened(function, wide):
    """Apply an operation to the first two operands in the wide type."""
    return lambda a, b, *c: function(a.astype(DTYPES[wide]), b.astype(DTYPES[wide]), *c)


def _multiply_add(a, b, c):
    return a * b + c


_FLOATS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
_ORDERED = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: ~_unordered(a, b),
}
# Each one is the negation of an ordered comparison.
_OPPOSITES = {
    "equ": "ne",
    "neu": "eq",
    "ltu": "ge",
    "leu": "gt",
    "gtu": "le",
    "geu": "lt",
    "nan": "num",
}

for _t in ("f32", "f64"):
    for _name, _function in _FLOATS.items():
        _add(f"{_name}.rn.{_t}", _t, f"{_t} {_t}", _rounded(_function, _t))
    _add(f"sqrt.rn.{_t}", _t, _t, _rounded(np.sqrt, _t))
    _add(f"neg.{_t}", _t, _t, np.negative)
    _add(f"min.{_t}", _t, f"{_t} {_t}", _rounded(smaller, _t))
    for _name, _function in _ORDERED.items():
        _add(f"setp.{_name}.{_t}", "pred", f"{_t} {_t}", _function)
    for _name, _opposite in _OPPOSITES.items():
        _add(
            f"setp.{_name}.{_t}",
            "pred",
            f"{_t} {_t}",
            lambda a, b, ordered=_ORDERED[_opposite]: ~ordered(a, b),
        )
for _name in ("add", "sub", "mul"):
    _add(f"{_name}.rn.f32x2", "b64", "b64 b64", _pairwise(_FLOATS[_name]))
_add("rcp.rn.f64", "f64", "f64", np.reciprocal)
_add("fma.rn.f32", "f32", "f32 f32 f32", fma32)

for _bits in (16, 32, 64):
    for _t in (f"s{_bits}", f"u{_bits}"):
        _two = f"{_t} {_t}"
        _add(f"add.{_t}", _t, _two, np.add)
        _add(f"sub.{_t}", _t, _two, np.subtract)
        _add(f"mul.lo.{_t}", _t, _two, np.multiply)
        _add(f"mad.lo.{_t}", _t, f"{_two} {_t}", _multiply_add)
        _add(f"div.{_t}", _t, _two, divide)
        _add(f"min.{_t}", _t, _two, np.minimum)
        _add(f"max.{_t}", _t, _two, np.maximum)
        _add(f"shr.{_t}", _t, f"{_t} u32", shift_right)
        if _bits < 64:
            _wide = f"{_t[0]}{2 * _bits}"
            _add(f"mul.wide.{_t}", _wide, _two, _widened(np.multiply, _wide))
            _add(f"mad.wide.{_t}", _wide, f"{_two} {_wide}", _widened(_multiply_add, _wide))
    _add(f"neg.s{_bits}", f"s{_bits}", f"s{_bits}", np.negative)
    _add(f"shl.b{_bits}", f"b{_bits}", f"b{_bits} u32", shift_left)
    for _t in (f"b{_bits}", f"s{_bits}", f"u{_bits}"):
        for _name in ("eq", "ne") if _t[0] == "b" else ("eq", "ne", "lt", "le", "gt", "ge"):
            _function = np.not_equal if _name == "ne" else _ORDERED[_name]
            _add(f"setp.{_name}.{_t}", "pred", f"{_t} {_t}", _function)
    for _t in (f"b{_bits}", f"s{_bits}", f"u{_bits}", f"f{_bits}"):
        _add(f"mov.{_t}", _t, _t, lambda a: a)
        _add(f"selp.{_t}", _t, f"{_t} {_t} pred", lambda a, b, chosen: np.where(chosen, a, b))
for _t in ("pred", "b16", "b32", "b64"):
    _add(f"and.{_t}", _t, f"{_t} {_t}", np.bitwise_and)
    _add(f"or.{_t}", _t, f"{_t} {_t}", np.bitwise_or)
    _add(f"xor.{_t}", _t, f"{_t} {_t}", np.bitwise_xor)
    _add(f"not.{_t}", _t, _t, np.invert)
_add("mov.pred", "pred", "pred", lambda a: a)
_add("bfe.u32", "u32", "u32 u32 u32", extract_bits)
_add("bfe.s32", "s32", "s32 u32 u32", extract_signed_bits)
_add("bfe.u64", "u64", "u64 u32 u32", extract_bits)
_add("prmt.b32", "b32", "b32 b32 b32", permute_bytes)

_INTEGERS = [f"{sign}{bits}" for sign in "su" for bits in (16, 32, 64)]
for _from in _INTEGERS:
    for _to in _INTEGERS:
        _add(f"cvt.{_to}.{_from}", _to, _from, _as(_to))
    for _to in ("f32", "f64"):
        _add(f"cvt.rn.{_to}.{_from}", _to, _from, _as(_to))
_add("cvt.rzi.s64.f32", "s64", "f32", to_int64)
_add("cvt.rzi.s64.f64", "s64", "f64", to_int64)
_add("cvt.f64.f32", "f64", "f32", _as("f64"))
_add("cvt.rn.f32.f64", "f32", "f64", _rounded(_as("f32"), "f32"))
_add("cvt.f32.f16", "f32", "f16", _rounded(_as("f32"), "f32"))
_add("cvt.f64.f16", "f64", "f16", _as("f64"))
_add("cvt.rn.f16.f32", "b16", "f32", to_f16)
_add("cvt.rn.f16x2.f32", "b32", "f32 f32", lambda high, low: pack(to_f16(high), to_f16(low)))
_add("cvt.f32.bf16", "f32", "bf16", from_bf16)
_add("cvt.f64.bf16", "f64", "bf16", lambda a: from_bf16(a).astype(np.float64))
_add("cvt.rn.bf16.f32", "b16", "f32", to_bf16)
_add("cvt.rn.bf16x2.f32", "b32", "f32 f32", lambda high, low: pack(to_bf16(high), to_bf16(low)))

# A pointer into global memory is a generic pointer; one into the parameters is an offset.
_add("cvta.to.global.u64", "u64", "u64", lambda a: a)
_add("cvta.param.u64", "u64", "u64", lambda a: a + PARAMETERS)
