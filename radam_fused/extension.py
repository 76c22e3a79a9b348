"""The compiled extension radam_fused._C, or the reason why it cannot be loaded."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def dense_copy(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy a tensor into the memory order of another one, without gaps."""
    return torch.empty_like(like.detach(), dtype=tensor.dtype).copy_(tensor.detach())


_C: Any = None
unavailable_reason: str | None = None
try:
    from . import _C  # after torch, whose OpenMP threads it uses

    _C.connect(dense_copy)
except (AttributeError, ImportError, RuntimeError) as error:
    _C = None
    if find_spec("radam_fused._C") is None:
        unavailable_reason = "this installation has no extension radam_fused._C"
    else:
        unavailable_reason = f"the extension radam_fused._C cannot be loaded: {error}"
