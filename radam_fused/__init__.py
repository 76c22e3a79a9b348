"""Rectified Adam (RAdam) for PyTorch in one fused pass: FusedRAdam, its siblings and its parts."""

import warnings
from typing import Any

from . import rectification
from .adam import FusedAdam, FusedAdamW
from .flat import FlatGroup
from .functional import radam_step_
from .optimizer import FusedRAdam, Rectification
from .presets import PRESETS
from .version import __version__

__all__ = [
    "PRESETS",
    "FlatGroup",
    "FusedAdam",
    "FusedAdamW",
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
