"""Helpers for tests of the gradient norm: the truth, and the sequence of torch."""

from math import sqrt

import torch
from torch.nn.utils import clip_grad_norm_

from ..test_device_bits import step_both
from .truth import REAL

# Around a chunk of a sum.
SIZES = [(5, 3), (0,), (1023,), (1024,), (1025,), (3, 2049), ()]

FINE = 1e-13  # relative error of a float64 norm


def true_norm(grads):
    """The norm by extended precision."""
    return float(
        sqrt(sum(float((g.detach().double().numpy().astype(REAL) ** 2).sum()) for g in grads))
    )


def two_groups(params):
    """Groups with other options, the parameters of which alternate."""
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.01}]


class ByTorch:
    """clip_grad_norm_ before the step of torch.optim.RAdam."""

    def __init__(self, params, max_grad_norm, **options):
        self.optimizer = torch.optim.RAdam(params, **options)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self._max_norm = max_grad_norm

    def step(self):
        params = [p for group in self.param_groups for p in group["params"]]
        self.grad_norm = clip_grad_norm_(params, self._max_norm)
        self.optimizer.step()


def scaled(optimizer, grads, scale, found_inf=0.0):
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.grad_scale = torch.tensor(scale, device=device)
    optimizer.found_inf = torch.tensor(found_inf, device=device)
    step_both([optimizer], [g * scale for g in grads])


def exact_tensors(arrays):
    return [torch.from_numpy(a.astype("float64")) for a in arrays]
