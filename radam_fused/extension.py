"""The compiled extension radam_fused._C, or why it does not load."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def dense_copy(tensor: Tensor, like: Tensor) -> Tensor:
    """A temporary copy of a tensor in the memory order of another, without gaps."""
    return torch.empty_like(like.detach(), dtype=tensor.dtype).copy_(tensor.detach())


_C: Any = None
why_not: str | None = None
try:
    from . import _C  # after torch: it shares torch's OpenMP threads

    _C.connect(dense_copy)
except (AttributeError, ImportError, RuntimeError) as error:
    _C = None
    if find_spec("radam_fused._C") is None:
        why_not = "this installation has no extension radam_fused._C"
    else:
        why_not = f"the extension radam_fused._C does not load: {error}"
