"""How the tensors of a launch are stored."""

from typing import NamedTuple

import torch


class Stored(NamedTuple):
    """Dtypes, masters and stochastic rounding.

    Attributes:
        param: Dtype of the parameters.
        grad: Dtype of the gradients.
        moment: Dtype of the moments.
        master: None, "split" or "float32".
        draws: Names of the tensors that are rounded stochastically.
    """

    param: torch.dtype
    grad: torch.dtype
    moment: torch.dtype
    master: str | None = None
    draws: tuple[str, ...] = ()

    def __str__(self):
        dtypes = [str(dtype).removeprefix("torch.") for dtype in self[:3]]
        return "-".join([*dtypes, *filter(None, (self.master, *self.draws))])

    @property
    def kernel(self):
        """What determines the CUDA kernel, which finds in its tables which tensors draw."""
        return self._replace(draws=("some",) if self.draws else ())

    def options(self):
        """The options of an optimizer that stores its tensors so."""
        if "exp_avg_sq" in self.draws:
            moments = "bfloat16"
        else:
            moments = "param" if self.moment == self.param else None
        return {
            "moments": moments,
            "master_weights": self.master,
            "stochastic_rounding": "param" in self.draws,
        }


_WIDE, _NARROW, _HALF = torch.float32, torch.bfloat16, torch.float16

FORMATS = [
    Stored(_WIDE, _WIDE, _NARROW, None, ("exp_avg_sq",)),
    Stored(_WIDE, _NARROW, _NARROW, None, ("exp_avg_sq",)),
    Stored(_NARROW, _NARROW, _WIDE, None, ("param",)),
    Stored(_NARROW, _NARROW, _NARROW, None, ("exp_avg_sq",)),
    Stored(_NARROW, _WIDE, _NARROW, None, ("param", "exp_avg_sq")),
    Stored(_NARROW, _NARROW, _WIDE, "split"),
    Stored(_NARROW, _NARROW, _NARROW, "split"),
    Stored(_NARROW, _WIDE, _NARROW, "split", ("exp_avg_sq",)),
    Stored(_NARROW, _NARROW, _WIDE, "float32"),
    Stored(_NARROW, _WIDE, _NARROW, "float32", ("exp_avg_sq",)),
    Stored(_HALF, _HALF, _NARROW, None, ("exp_avg_sq",)),
    Stored(_HALF, _HALF, _WIDE, "float32"),
    Stored(_HALF, _WIDE, _HALF, "float32"),
    Stored(_HALF, _HALF, _NARROW, "float32", ("exp_avg_sq",)),
]
