"""Rectified Adam for PyTorch in one fused pass."""

from . import rectification
from .flat import FlatBuffers
from .functional import radam_step_
from .optimizer import FusedRAdam, Rectification
from .presets import PRESETS
from .version import __version__

__all__ = [
    "PRESETS",
    "FlatBuffers",
    "FusedRAdam",
    "Rectification",
    "__version__",
    "radam_step_",
    "rectification",
]
