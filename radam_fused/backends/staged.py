"""Parameters that the extension cannot address in place."""

import torch
from torch import Tensor

from ..tensors import moment_names
from .base import State


class Staged:
    """A parameter that is stepped in contiguous copies of all its tensors.

    For views with gaps, gradients in another memory order, lazily conjugated gradients.
    """

    def __init__(self, param: Tensor, state: State, amsgrad: bool) -> None:
        self._originals = [param, *(state[key] for key in moment_names(amsgrad))]
        self._copies = [self._blank(tensor) for tensor in self._originals]
        self.param = self._copies[0]
        self.param.grad_dtype = None  # any: the gradient's own
        if param.grad is not None:
            self.param.grad = self._blank(param.grad)
        self.state: State = dict(zip(moment_names(amsgrad), self._copies[1:], strict=True))

    @staticmethod
    def _blank(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    def read(self, param: Tensor, state: State) -> bool:
        """Copy everything in; False where a tensor has changed so that the copies do not fit it."""
        grad = param.grad
        if grad is None:
            self.param.grad = None
            return True
        held = (param, *(state.get(key) for key in self.state if key != "step"))
        if state.get("step") is not self.state["step"] or not all(
            now is then and self._is_like(now, copy)
            for now, then, copy in zip(held, self._originals, self._copies, strict=True)
        ):
            return False
        if self.param.grad is None or self.param.grad.dtype != grad.dtype:
            self.param.grad = self._blank(grad)
        if not self._is_like(grad, self.param.grad):
            return False
        for copy, original in zip(self._copies, self._originals, strict=True):
            copy.copy_(original.detach())
        self.param.grad.copy_(grad.detach())
        return True

    @staticmethod
    def _is_like(tensor: Tensor, copy: Tensor) -> bool:
        return (
            tensor.layout is torch.strided
            and tensor.shape == copy.shape
            and tensor.dtype == copy.dtype
            and tensor.device == copy.device
        )

    def write(self) -> None:
        """Copy the parameter and its moments back."""
        for copy, original in zip(self._copies, self._originals, strict=True):
            original.detach().copy_(copy)
