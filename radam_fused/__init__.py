"""Rectified Adam (RAdam) for PyTorch in one fused pass: FusedRAdam and its parts."""

import warnings
from typing import Any

from . import rectification
from .flat import FlatGroup
from .functional import radam_step_
from .optimizer import FusedRAdam, Rectification
from .presets import PRESETS
from .version import __version__

__all__ = [
    "PRESETS",
    "FlatGroup",
    "FusedRAdam",
    "Rectification",
    "__version__",
    "radam_step_",
    "rectification",
]


def __getattr__(name: str) -> Any:
    if name == "FlatBuffers":
        warnings.warn("FlatBuffers is deprecated, use FlatGroup", DeprecationWarning, stacklevel=2)
        return FlatGroup
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
