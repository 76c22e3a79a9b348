"""The strongest public way to clip on a GPU without a step that clips: two launches and no wait.

One Triton kernel takes the norm of all gradients by atomic additions, whose order, and so the last
bits of the norm, differ between runs; torch._foreach_mul_ scales the gradients.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 4096


@triton.jit
def _norm_kernel(addresses, sizes, owners, firsts, total, CHUNK: tl.constexpr):
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    start = (chunk - tl.load(firsts + owner)).to(tl.int64) * CHUNK
    elements = start + tl.arange(0, CHUNK)
    gradient = tl.load(addresses + owner).to(tl.pointer_type(tl.float32))
    x = tl.load(gradient + elements, mask=elements < tl.load(sizes + owner), other=0.0)
    tl.atomic_add(total, tl.sum(x * x, axis=0))


class Clipper:
    """Clips float32 gradients in place.

    Args:
        gradients: The gradients, on one device; they must stay where they are.
    """

    def __init__(self, gradients: Sequence[Tensor]) -> None:
        self._gradients = list(gradients)
        counts = [-(-g.numel() // _CHUNK) for g in gradients]
        owners = torch.repeat_interleave(torch.tensor(counts, device="cpu"))
        firsts = torch.tensor([0, *counts], device="cpu").cumsum(0)[:-1]
        addresses = torch.tensor([g.data_ptr() for g in gradients], device="cpu")
        sizes = torch.tensor([g.numel() for g in gradients], device="cpu")
        device = self._gradients[0].device
        tables = addresses, sizes, owners.int(), firsts.int()
        self._tables = [table.to(device) for table in tables]
        self._programs = len(owners)

    def clip(self, max_norm: float) -> Tensor:
        """Clip the gradients as `torch.nn.utils.clip_grad_norm_` does; returns their norm."""
        total = torch.zeros((), device=self._gradients[0].device)
        _norm_kernel[(self._programs,)](*self._tables, total, CHUNK=_CHUNK)
        norm = total.sqrt()
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(self._gradients, coefficient)
        return norm
