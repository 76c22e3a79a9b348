"""The norm of the gradients of a step: over launches, devices and processes."""

from collections.abc import Iterable
from itertools import accumulate
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, rectification
from .backends import Launch, Step, Workspace
from .groups import params_of
from .spread import Spread
from .state import CPU
from .sums import fold


class ClipSettings(NamedTuple):
    """What a step does with the norm.

    Attributes:
        max_norm: Largest norm after clipping; infinity for no clipping.
        skip_above: Largest norm of a step that is not skipped.
        skips_nonfinite: Whether a step with an infinite norm or NaN is skipped.
        raises: Whether it raises instead. Waits for the device.
        over: A process group over which the gradients are spread besides, or None.
    """

    max_norm: float
    skip_above: float
    skips_nonfinite: bool
    raises: bool
    over: Any


class Norms:
    """Takes the norms of an optimizer's steps. Keeps its memory between them."""

    def __init__(self) -> None:
        self._sums: dict[torch.device, Tensor] = {}
        self._norm: Tensor | float | None = None  # of the last step; on a device, with the rest
        self._skipped = 0  # steps, by the host
        # On each device: the last Clip, and the number of skipped steps. Graphs write it.
        self._states: dict[torch.device, Tensor] = {}

    def measure(
        self, launches: Iterable[Launch], step: Step, settings: ClipSettings, spread: Spread
    ) -> None:
        """Take the norm of all gradients that the launches have read, for a step.

        A collective operation, unless the parameters are local.

        Args:
            launches: The launches of the step.
            step: The step, which gets the clip coefficient.
            settings: What it does with the norm.
            spread: How the parameters are spread over processes.

        Raises:
            RuntimeError: The norm is infinite or NaN and the settings forbid that, or another
                process failed.
        """
        sizes = [len(params_of(group)) for group in step.groups]
        *first_of_group, count = accumulate(sizes, initial=0)
        sums: dict[torch.device, Tensor] = {}
        for launch in launches:
            device = launch.kind.device
            if device not in sums:
                sums[device] = self._zeros(device, count)
            launch.sum_squares(sums[device], first_of_group)
        home = next(((it.kind.device, it.reducer) for it in launches if it.reducer), (CPU, None))
        device, reducer = home
        numbers = sums.pop(device) if device in sums else self._zeros(device, count)
        for others in sums.values():
            numbers += others.to(device, non_blocking=True)
        total, failed = spread.total(numbers, fold if reducer is None else reducer.fold)
        options = settings.max_norm, settings.skip_above, settings.skips_nonfinite
        if reducer is None:
            self._raise_if(failed)
            grad_scale = 1.0 if step.host_scale is None else step.host_scale
            clip = rectification.clip(total.item(), grad_scale, *options)
            step.clip, self._norm = clip, clip.norm
        else:
            scale = step.grad_scale
            if scale is not None:
                scale = scale.detach().to(device, torch.float32, non_blocking=True)
            state = self._state_on(device)
            reducer.clip(total, scale, failed, options, state)
            step.clip = self._norm = state
        if settings.raises and not (step.host_clip and step.host_clip.norm < inf):
            raise RuntimeError(
                "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it "
                "cannot be clipped. To disable this error and scale the gradients by the "
                "non-finite norm anyway, set `error_if_nonfinite=False`"
            )
        if reducer is None:
            self._skipped += step.is_skipped

    @staticmethod
    def _raise_if(failed: Tensor | None) -> None:
        if failed is not None and failed.item() > 0:
            raise RuntimeError("another process failed to read its parameters for this step")

    def _zeros(self, device: torch.device, count: int) -> Tensor:
        sums = None if backends.is_capturing(device) else self._sums.get(device)
        if sums is None or sums.numel() != count:
            sums = Workspace(device).make(8 * count).view(torch.float64)
            if not backends.is_capturing(device):
                self._sums[device] = sums
        return sums.zero_()

    def _state_on(self, device: torch.device) -> Tensor:
        if device not in self._states:
            if backends.is_capturing(device):
                raise RuntimeError(
                    "cannot capture this step: it is the first one that takes a norm. Run one "
                    "before"
                )
            self._states[device] = torch.zeros(4, dtype=torch.float64, device=device)
        return self._states[device]

    def grad_norm(self) -> Tensor | None:
        """The norm of the last step; None if none was taken."""
        if isinstance(self._norm, Tensor):
            return self._norm[0].clone()
        if self._norm is None:
            return None
        return torch.tensor(self._norm, dtype=torch.float64, device=CPU)

    def skipped_steps(self) -> Tensor:
        """The number of steps that were skipped because of their norm."""
        counts = [state[3].long() for state in self._states.values()]
        if not counts:
            return torch.tensor(self._skipped, dtype=torch.int64, device=CPU)
        return sum((count.to(counts[0].device) for count in counts[1:]), counts[0] + self._skipped)
