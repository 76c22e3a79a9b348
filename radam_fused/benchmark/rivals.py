"""Optimizers that step the same tensors in turn, to compare their times."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..optimizer import FusedRAdam
from .models import Shapes
from .timing import Step

OURS = "FusedRAdam"
RADAM = "torch RAdam"
FUSED_ADAMW = "torch AdamW fused"


class SharedTensors:
    """Parameters, gradients and moments that several optimizers share, on one device.

    The place of a tensor in memory changes the time of a step by 2 to 4 %, so all optimizers work
    on the same tensors. A large model also fits into memory once only.

    Args:
        shapes: Shapes of the parameters.
        device: Their device.
        dtype: Their dtype.
    """

    def __init__(
        self, shapes: Shapes, device: str = "cuda", dtype: torch.dtype = torch.float32
    ) -> None:
        def normal(shape: Sequence[int]) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        self.device = device
        self.params = [torch.nn.Parameter(normal(shape)) for shape in shapes]
        for param in self.params:
            param.grad = normal(param.shape)
        self._moments: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}

    def moments(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """The moments of a dtype, one pair per parameter."""
        if dtype not in self._moments:
            self._moments[dtype] = [
                (torch.zeros_like(p, dtype=dtype), torch.ones_like(p, dtype=dtype))
                for p in self.params
            ]
        return self._moments[dtype]

    def share(
        self, optimizer: torch.optim.Optimizer, moment: torch.dtype, counter: str = "cpu"
    ) -> Step:
        """Give an optimizer the moments of a dtype.

        Args:
            optimizer: An optimizer of the parameters, before its first step.
            moment: Dtype of its moments.
            counter: Device of its step counters.

        Returns:
            Its step.
        """
        for param, (exp_avg, exp_avg_sq) in zip(self.params, self.moments(moment), strict=True):
            step = torch.tensor(0.0, device=counter)
            state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            optimizer.state[param] = state
        return optimizer.step


def usual(tensors: SharedTensors) -> dict[str, Step]:
    """The steps of FusedRAdam, torch.optim.RAdam with its defaults, and torch's fused AdamW."""
    optim, params = torch.optim, tensors.params
    return {
        OURS: tensors.share(FusedRAdam(params), torch.float32),
        FUSED_ADAMW: tensors.share(
            optim.AdamW(params, fused=True), params[0].dtype, tensors.device
        ),
        RADAM: tensors.share(optim.RAdam(params), params[0].dtype),
    }
