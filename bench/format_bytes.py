"""The stored formats that the benchmark compares, and the bytes that each keeps and moves."""

from typing import Any, NamedTuple

import torch

from radam_fused.benchmark.limit import BYTES
from radam_fused.benchmark.rivals import FUSED_ADAMW


class Bytes(NamedTuple):
    """Bytes per parameter.

    Attributes:
        param: Of the parameter.
        grad: Of its gradient.
        moment: Of each of its two moments.
        master: Of what is kept of its float32 value beside it.
    """

    param: float
    grad: float
    moment: float
    master: float = 0

    def kept(self) -> float:
        """What stays in memory beside the gradient."""
        return self.param + self.master + 2 * self.moment

    def moved(self) -> float:
        """What a step reads and writes: all that is kept, and the gradient, which is only read."""
        return 2 * self.kept() + self.grad

    def share(self, limit: float, seconds: float) -> float:
        """The share of the bandwidth limit that a step reaches.

        Args:
            limit: Seconds of the limit, which moves the bytes of a float32 step.
            seconds: Seconds of the step.
        """
        return limit * self.moved() / BYTES / seconds


class Format(NamedTuple):
    """A stored format of FusedRAdam.

    Attributes:
        dtype: The dtype of the parameters and of their gradients.
        options: The options.
    """

    dtype: torch.dtype
    options: dict[str, Any]

    def bytes(self) -> Bytes:
        own = self.dtype.itemsize
        moments = {None: 4, "bfloat16": 2, "param": own}[self.options.get("moments")]
        masters = {None: 0, "split": 2, "float32": 4}[self.options.get("master_weights")]
        return Bytes(own, own, moments, masters)


FLOAT32 = "float32"
FLOAT32_MOMENTS = "float32, bfloat16 moments"
SPLIT = "bfloat16, split masters"
SPLIT_MOMENTS = "bfloat16, split masters, bfloat16 moments"
COPIES = "bfloat16, float32 masters"
ROUNDED = "bfloat16, stochastic rounding, bfloat16 moments"
NARROW = "bfloat16"
TORCH_NARROW = "bfloat16, moments in the parameter's dtype"

_MOMENTS = {"moments": "bfloat16"}
FORMATS = {
    FLOAT32: Format(torch.float32, {}),
    FLOAT32_MOMENTS: Format(torch.float32, _MOMENTS),
    SPLIT: Format(torch.bfloat16, {"master_weights": "split"}),
    SPLIT_MOMENTS: Format(torch.bfloat16, {"master_weights": "split"} | _MOMENTS),
    COPIES: Format(torch.bfloat16, {"master_weights": "float32"}),
    ROUNDED: Format(torch.bfloat16, {"stochastic_rounding": True} | _MOMENTS),
    NARROW: Format(torch.bfloat16, {}),
    TORCH_NARROW: Format(torch.bfloat16, {"moments": "param"}),
}

ADAMW, ADAMW_NARROW = FUSED_ADAMW, f"{FUSED_ADAMW}, bfloat16"
TIMED_RIVALS = {
    ADAMW: Bytes(param=4, grad=4, moment=4),
    ADAMW_NARROW: Bytes(param=2, grad=2, moment=2),
}

# Optimizers that have not run here: computed from the formats that they store. The 8-bit moments
# of flashoptim have a 2-byte scale for each 32 numbers.
OTHER_RIVALS = {
    "torch AdamW fused on CUDA, bfloat16 states": Bytes(param=4, grad=4, moment=2),
    "Transformer Engine FusedAdam, split masters, bfloat16 moments": Bytes(2, 2, 2, master=2),
    "flashoptim, 24-bit masters, 8-bit moments": Bytes(2, 2, 1 + 2 / 32, master=1),
}
