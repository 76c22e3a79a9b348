"""The compiled extension radam_fused._C, or why it does not load."""

from operator import is_
from typing import Any

from torch import Tensor

why_not: str | None = None
try:
    from .. import _C as _C  # after torch: it shares torch's OpenMP threads

    _C.connect()
except (AttributeError, ImportError, RuntimeError) as error:
    why_not = f"the extension radam_fused._C does not load: {error}"


def _same_objects(held: list[Any] | dict[Any, Any], expected: list[Any]) -> bool:
    """Whether a list, or the values of a dict, are these very objects in this order."""
    objects = held.values() if isinstance(held, dict) else held
    return len(held) == len(expected) and all(map(is_, objects, expected))


def _any_gradient(params: list[Tensor]) -> bool:
    """Whether some parameter has a gradient."""
    return any(param.grad is not None for param in params)


same_objects = _same_objects if why_not else _C.same_objects
any_gradient = _any_gradient if why_not else _C.any_gradient
