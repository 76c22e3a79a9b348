"""The inputs of one step that all launches share."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..groups import Groups
from ..option_sets import OptionSet
from ..rectification import Clip
from ..tensors import describe


def _check_scalar(value: Any, name: str) -> None:
    is_real = isinstance(value, Tensor) and not value.is_complex() and not value.is_meta
    if not is_real or value.layout != torch.strided:
        raise TypeError(f"{name} is {describe(value)}, expected a tensor of one real number")
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected one element")


class Step:
    """The inputs of one step.

    Args:
        groups: The parameter groups.
        options: The options of the optimizer's class.
        numbers: The options of the groups as numbers (`new_numbers`).
        grad_scale: Tensor of one element, the scale that the gradients were multiplied by; or None.
        found_inf: Tensor of one element, nonzero if a gradient overflowed: the step is then
            skipped; or None.

    Raises:
        TypeError: The scale or the flag is not a tensor of real numbers.
        ValueError: It has several elements.
    """

    def __init__(
        self,
        groups: Groups,
        options: OptionSet,
        numbers: Any,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        # A scaler that has seen no gradient sets the number 0 instead of a tensor.
        if found_inf is not None and not isinstance(found_inf, Tensor) and found_inf == 0:
            found_inf = None
        if grad_scale is not None:
            _check_scalar(grad_scale, "grad_scale")
        if found_inf is not None:
            _check_scalar(found_inf, "found_inf")
        self.groups = groups
        self.options = options
        self.numbers = numbers
        self.grad_scale = grad_scale
        self.found_inf = found_inf
        # Of the gradients, on the host or as three float64 numbers on a device; None: no norm.
        self.clip: Clip | Tensor | None = None
        self._clips: dict[torch.device, Tensor] = {}

    @cached_property
    def overflows(self) -> bool:
        """Whether the step is skipped. Waits for the device."""
        return self.found_inf is not None and bool(self.found_inf.item())

    @cached_property
    def host_scale(self) -> float | None:
        """The scale of the gradients. Waits for the device."""
        return None if self.grad_scale is None else self.grad_scale.item()

    @cached_property
    def host_clip(self) -> Clip | None:
        """The norm of the gradients, and what follows from it. Waits for the device."""
        if not isinstance(self.clip, Tensor):
            return self.clip
        norm, coefficient, skips = self.clip.tolist()[:3]
        return Clip(norm, coefficient, bool(skips))

    @property
    def is_skipped(self) -> bool:
        """Whether the step is skipped because of its norm. Waits for the device."""
        return self.host_clip is not None and self.host_clip.skips

    def clip_on(self, device: torch.device) -> Tensor:
        """The norm of the gradients, and what follows from it, on a device."""
        if device not in self._clips:
            clip = self.clip
            if not isinstance(clip, Tensor):
                clip = torch.tensor(clip, dtype=torch.float64, device="cpu")
            self._clips[device] = clip.to(device, non_blocking=True)
        return self._clips[device]
