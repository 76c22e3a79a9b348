"""The compiled extension radam_fused._C, or why it does not load."""

from importlib.util import find_spec
from typing import Any

from . import plain

why_not: str | None = None
try:
    from .. import _C as _C  # after torch: it shares torch's OpenMP threads

    _C.connect()
except (AttributeError, ImportError, RuntimeError) as error:
    if find_spec("radam_fused._C") is None:
        why_not = "this installation is without the extension radam_fused._C"
    else:
        why_not = f"the extension radam_fused._C does not load: {error}"


# What of it every engine uses, and its likeness in Python where it does not load.
_common: Any = plain if why_not else _C
TensorTable = _common.TensorTable
same_objects = _common.same_objects
any_gradient = _common.any_gradient
