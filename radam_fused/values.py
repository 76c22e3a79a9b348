"""The values that an option can have."""

from collections.abc import Callable, Mapping
from math import inf
from numbers import Complex, Real
from typing import Any, SupportsFloat, SupportsIndex

import torch
from torch import Tensor

from .tensors import describe, has_own_memory

# Returns the error of a value, or None if it is valid.
Domain = Callable[[Any], Exception | None]


def _number(value: Any, what: str, expected: str) -> float | Exception | None:
    """A value as a number, its error, or None if it is on a device or known only to a subclass."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return ValueError(
                f"Tensor {what} must be 1-element, but its shape is {tuple(value.shape)}"
            )
        if value.is_complex() or value.layout != torch.strided or value.is_meta:
            return TypeError(f"Invalid {what} value: {describe(value)}, expected {expected}")
        readable = value.device.type == "cpu" and has_own_memory(value)
        return float(value.item()) if readable else None
    is_complex = isinstance(value, Complex) and not isinstance(value, Real)
    try:
        if isinstance(value, SupportsFloat | SupportsIndex) and not is_complex:
            return float(value)
    except OverflowError:
        return inf
    except (TypeError, ValueError):  # an array of several elements
        pass
    return TypeError(f"Invalid {what} value: {describe(value)}, expected {expected}")


def number(name: str, in_torch: str = "", finite: bool = True) -> Domain:
    """A number of at least 0, or a tensor of one element. A tensor on a device is not read.

    Args:
        name: Name of the option.
        in_torch: What torch's error messages call it, if they do not use the name.
        finite: Whether the number must be finite.
    """

    def check(value: Any) -> Exception | None:
        found = _number(value, name, "a number")
        if isinstance(found, Exception):
            return found
        if found is None or 0.0 <= found < inf or (found == inf and not finite):
            return None
        what, how = in_torch or f"{name} value", " and finite" if finite else ""
        return ValueError(f"Invalid {what}: {value}, expected {name} >= 0{how}")

    return check


def limit(name: str) -> Domain:
    """None, or a number of at least 0, which can be infinite."""

    def check(value: Any) -> Exception | None:
        expected = f"{name} >= 0 or None"
        if value is None:
            return None
        if not isinstance(value, Real):
            return TypeError(f"Invalid {name} value: {describe(value)}, expected {expected}")
        if not float(value) >= 0:
            return ValueError(f"Invalid {name} value: {value}, expected {expected}")
        return None

    return check


def decay_rates(name: str) -> Domain:
    """Two numbers in [0, 1), or two tensors of one element."""

    def check(value: Any) -> Exception | None:
        expected = "two numbers in [0, 1)"
        is_sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        if not is_sequence or isinstance(value, Tensor | str | Mapping):
            return TypeError(f"Invalid {name} value: {describe(value)}, expected {expected}")
        if len(value) != 2:
            return ValueError(f"Invalid {name} value: {describe(value)}, expected {expected}")
        for index, item in enumerate(value):
            found = _number(item, f"{name}[{index}]", "a number in [0, 1)")
            if isinstance(found, Exception):
                return found
            if found is not None and not 0.0 <= found < 1.0:
                return ValueError(
                    f"Invalid beta parameter at index {index}: {item}, expected {name} in [0, 1)"
                )
        return None

    return check


def flag(name: str, or_none: bool = False) -> Domain:
    """True or False, or a number that equals one of them; optionally None."""

    def check(value: Any) -> Exception | None:
        if (or_none and value is None) or (isinstance(value, Real) and value in (0, 1)):
            return None
        # NumPy does not register its bool as a number.
        if type(value).__name__ in ("bool", "bool_"):
            return None
        expected = "True, False or None" if or_none else "True or False"
        return TypeError(f"Invalid {name} value: {describe(value)}, expected {expected}")

    return check


def choice(name: str, *values: str) -> Domain:
    """None, or one of some texts."""

    def check(value: Any) -> Exception | None:
        if value is None or (isinstance(value, str) and value in values):
            return None
        kind = ValueError if isinstance(value, str) else TypeError
        known = ", ".join(map(repr, values))
        return kind(f"Invalid {name} value: {describe(value)}, expected None or one of {known}")

    return check


def whole_number(name: str, end: int) -> Domain:
    """An integer from 0 to below an end."""

    def check(value: Any) -> Exception | None:
        expected = f"an integer of at least 0 and below {end}"
        if isinstance(value, bool) or not isinstance(value, int):
            return TypeError(f"Invalid {name} value: {describe(value)}, expected {expected}")
        if not 0 <= value < end:
            return ValueError(f"Invalid {name} value: {value}, expected {expected}")
        return None

    return check
