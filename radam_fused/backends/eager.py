"""The update in plain PyTorch: the readable reference, on any device, differentiable."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inputs import StepInputs
from ..rectification import Coefficients, Update
from ..rounding import root
from ..tensors import arithmetic_dtype, check_grad, check_state
from .base import Backend, Setup, State


def update_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    c: Coefficients,
) -> None:
    """One step of Rectified Adam (arXiv 1908.03265, Algorithm 2), in place, each operation rounded.

    Args:
        param: The parameter; float64 is computed in float64, everything else in float32.
        grad: Its gradient, of the same shape; only read.
        exp_avg: First moment, of the same shape.
        exp_avg_sq: Second moment, of the same shape.
        max_exp_avg_sq: Running maximum of the second moment, or None without amsgrad.
        c: The step's coefficients.
    """
    if param.is_complex():
        param, grad, exp_avg, exp_avg_sq = map(
            torch.view_as_real, (param, grad.resolve_conj(), exp_avg, exp_avg_sq)
        )
        if max_exp_avg_sq is not None:
            max_exp_avg_sq = torch.view_as_real(max_exp_avg_sq)
    dtype = arithmetic_dtype(param)
    p, m, v = param.to(dtype), exp_avg.to(dtype), exp_avg_sq.to(dtype)

    g = grad.to(dtype) * c.grad_mul
    if c.l2 != 0:
        g = g + p * c.l2
    p = p * c.decay
    m = m + (g - m) * c.one_minus_beta1
    v = v * c.beta2 + (g * g) * c.one_minus_beta2
    s = v if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq.to(dtype), v)
    if c.update is Update.RECTIFIED:
        p = p - (m * c.step_size) / (root(s) + c.eps)
    elif c.update is Update.MOMENTUM:
        p = p - m * c.step_size

    param.copy_(p)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    if max_exp_avg_sq is not None:
        max_exp_avg_sq.copy_(s)


class EagerLaunch:
    """Steps its parameters one after the other."""

    def __init__(self, params: Sequence[Tensor], states: Sequence[State], setup: Setup) -> None:
        self._params = params
        self._states = states
        self._setup = setup
        self._due: list[tuple[Tensor, Tensor, State, Coefficients]] = []

    def refresh(self, inputs: StepInputs) -> bool:
        """See Launch.refresh."""
        self._due = []
        if inputs.overflows:
            return True
        if self._setup.flat is not None and self._setup.flat.stray() is not None:
            return False
        by_count: dict[float, Coefficients] = {}
        for param, state in zip(self._params, self._states, strict=True):
            if param.grad is None:
                continue
            try:
                check_grad(param, param.grad, "")
                check_state(param, state, "")
            except (KeyError, RuntimeError, ValueError):
                return False
            count = float(state["step"]) + 1
            if count not in by_count:
                by_count[count] = inputs.coefficients(count)
            self._due.append((param, param.grad, state, by_count[count]))
        return True

    def run(self) -> None:
        """See Launch.run."""
        for param, grad, state, coefficients in self._due:
            maximum = state["max_exp_avg_sq"] if self._setup.amsgrad else None
            update_(param, grad, state["exp_avg"], state["exp_avg_sq"], maximum, coefficients)
            state["step"] += 1
        self._due = []


BACKEND: Backend = Backend(
    name="eager",
    unavailable=lambda: None,
    refuses=lambda param: None,
    launches=lambda params, states, setup: [EagerLaunch(params, states, setup)],
    counts_on_device=False,
)
