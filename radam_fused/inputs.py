"""What one step of a parameter group computes with."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .hyperparameters import coefficient_arguments
from .rectification import Coefficients, coefficients


class DeviceInputs(NamedTuple):
    """What a step that the device counts is computed from.

    Attributes:
        options: Arguments of :func:`radam_fused.rectification.coefficients`, without a learning
            rate that is a tensor on the device.
        lr: That tensor, of float32 or float64, or None.
        grad_scale: One float32 number there by which the gradients are too large, or None.
        found_inf: One float32 number there, not 0 where nothing is to move, or None.
    """

    options: dict[str, Any]
    lr: Tensor | None
    grad_scale: Tensor | None
    found_inf: Tensor | None


class StepInputs:
    """The options of a group and what a gradient scaler has found, each read where it is needed.

    Args:
        group: The parameter group.
        grad_scale: One number by which the gradients are too large, or None.
        found_inf: One number, not 0 where a gradient has overflowed and nothing may move, or None.
    """

    def __init__(
        self,
        group: Mapping[str, Any],
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        self._group = group
        self._grad_scale = grad_scale
        # A scaler that has found no gradient at all leaves the plain number 0.
        self._found_inf = found_inf if isinstance(found_inf, Tensor) else None

    @property
    def eps(self) -> float:
        """The group's."""
        eps: float = self._group["eps"]
        return eps

    @cached_property
    def overflows(self) -> bool:
        """Whether nothing may move, for engines that ask on the host."""
        return self._found_inf is not None and bool(self._found_inf.item())

    @cached_property
    def _on_host(self) -> dict[str, Any]:
        scale = 1.0 if self._grad_scale is None else self._grad_scale.item()
        return {**coefficient_arguments(self._group), "grad_scale": scale}

    def coefficients(self, step: float) -> Coefficients:
        """Coefficients of a step, for engines whose steps are counted on the host.

        Args:
            step: Number of steps taken, this one included.
        """
        return coefficients(int(step), **self._on_host)

    def check_capturable(self, device: torch.device) -> None:
        """Raise where an engine that counts on the device could not read what it needs there.

        Raises:
            ValueError: The learning rate is a tensor of that device, but neither float32 nor
                float64; or it, the gradients' scale or the verdict on them is not one number.
            RuntimeError: The learning rate is a tensor elsewhere, which a graph that is being
                captured would read once and for all.
        """
        for name, number in (("grad_scale", self._grad_scale), ("found_inf", self._found_inf)):
            if number is not None and number.numel() != 1:
                raise ValueError(f"{name} has shape {tuple(number.shape)}, expected one number")
        lr = self._group["lr"]
        if not isinstance(lr, Tensor):
            return
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if lr.device == device:
            if lr.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"lr has dtype {lr.dtype}, expected torch.float32 or float64")
        elif torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"lr is a tensor on {lr.device}: replays of the graph that is being captured would "
                f"not see it change; make it one on {device}"
            )

    def on_device(self, device: torch.device) -> DeviceInputs:
        """For engines that count on the device."""
        lr = self._group["lr"]
        if isinstance(lr, Tensor) and lr.device == device:
            options = coefficient_arguments({**self._group, "lr": 0.0})
            del options["lr"]
        else:
            options, lr = coefficient_arguments(self._group), None
        grad_scale, found_inf = (
            None if number is None else number.detach().to(device, torch.float32, non_blocking=True)
            for number in (self._grad_scale, self._found_inf)
        )
        return DeviceInputs(options, None if lr is None else lr.detach(), grad_scale, found_inf)
