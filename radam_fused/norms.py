"""The norms of a step: over launches, devices and processes."""

from contextlib import suppress
from itertools import accumulate
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, rectification
from .backends import Launches, Reducer, Step, Workspace
from .backends.eager import norms_of
from .groups import Groups, params_of
from .spread import Spread
from .state import CPU
from .sums import fold


class NormSettings(NamedTuple):
    """The norms that a step takes, and what it does with that of the gradients.

    Attributes:
        of_gradients: Whether it takes the norm of the gradients.
        max_norm: Largest norm after clipping; infinity for no clipping.
        skip_above: Largest norm of a step that is not skipped.
        skips_nonfinite: Whether a step with an infinite norm or NaN is skipped.
        raises: Whether it raises instead. Waits for the device.
        of_update: Whether it takes the norm of the update.
        per_parameter: Whether it keeps the norms of each parameter.
        beyond: A process group over which the parameters are spread besides, or None.
    """

    of_gradients: bool
    max_norm: float
    skip_above: float
    skips_nonfinite: bool
    raises: bool
    of_update: bool
    per_parameter: bool
    beyond: Any


class _Norm:
    """The last norm of one kind, and its memory, which graphs write."""

    def __init__(self) -> None:
        self._sums: dict[torch.device, Tensor] = {}  # one number for each parameter
        self._states: dict[torch.device, Tensor] = {}  # a Clip, and the number of skipped steps
        self._each: dict[torch.device, Tensor] = {}  # the norms of the parameters
        self._last: Tensor | float | None = None
        self._last_each: Tensor | None = None

    def sums(self, device: torch.device, count: int) -> Tensor:
        """Zeros, for the sums of squares of the parameters."""
        return self._kept(self._sums, device, count, False).zero_()

    def state(self, device: torch.device) -> Tensor:
        """Norm, coefficient, skips, and the number of skipped steps."""
        return self._kept(self._states, device, 4, True)

    def keep(self, norm: Tensor | float) -> None:
        """Keep a norm: a number, or the state on a device."""
        self._last = norm

    def keep_each(self, sums: Tensor, scale: Tensor | float) -> None:
        """Keep the norms of the parameters, given their sums of squares times the scale's."""
        each = self._kept(self._each, sums.device, sums.numel(), True)
        self._last_each = each.copy_(norms_of(sums, scale))

    @staticmethod
    def _kept(
        kept: dict[torch.device, Tensor], device: torch.device, count: int, is_result: bool
    ) -> Tensor:
        found, is_captured = kept.get(device), backends.is_capturing(device)
        if found is not None and found.numel() == count and (is_result or not is_captured):
            return found
        if is_result and is_captured:
            raise RuntimeError(
                "cannot capture this step: it is the first one that takes a norm. Run one before"
            )
        made = Workspace(device).make(8 * count).view(torch.float64).zero_()
        if not is_captured:
            kept[device] = made
        return made

    def last(self) -> Tensor | None:
        """The last norm, a new 0-d tensor; None if there is none."""
        if isinstance(self._last, Tensor):
            return self._last[0].clone()
        if self._last is None:
            return None
        return torch.tensor(self._last, dtype=torch.float64, device=CPU)

    def last_each(self) -> Tensor | None:
        """The last norms of the parameters, a new 1-d tensor; None if there are none."""
        return None if self._last_each is None else self._last_each.clone()

    def skipped(self) -> list[Tensor]:
        """The number of steps that each device has skipped."""
        return [state[3].long() for state in self._states.values()]


class Norms:
    """Takes the norms of an optimizer's steps. Keeps its memory between them.

    Attributes:
        of_gradients: The norm of the gradients.
        of_update: The norm of the update.
    """

    def __init__(self) -> None:
        self.of_gradients = _Norm()
        self.of_update = _Norm()
        self._skipped = 0  # steps, by the host
        self._update_sums: dict[torch.device, Tensor] = {}
        self._failures: list[tuple[Tensor, Any]] = []  # numbers on their way to the host, events

    def measure(
        self, launches: Launches, step: Step, settings: NormSettings, spread: Spread
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
        norm, (device, reducer) = self.of_gradients, _home(launches)
        try:
            self._raise_late()
            numbers = self._sum(launches, step.groups, device)
        except Exception:
            with suppress(Exception):  # the first error counts
                spread.fail()
            raise
        total, failed = spread.total(numbers, fold if reducer is None else reducer.fold)
        options = settings.max_norm, settings.skip_above, settings.skips_nonfinite
        scale: Tensor | float = 1.0
        if reducer is None:
            _raise_if(failed)
            scale = 1.0 if step.host_scale is None else step.host_scale
            clip = rectification.clip(total.item(), scale, *options)
            step.clip = clip
            norm.keep(clip.norm)
        else:
            on_device = step.grad_scale
            if on_device is not None:
                scale = on_device = on_device.detach().to(device, torch.float32, non_blocking=True)
            step.clip = norm.state(device)
            reducer.clip(total, on_device, failed, options, step.clip)
            norm.keep(step.clip)
            self._note(failed)
        if settings.per_parameter:
            norm.keep_each(spread.each(numbers), scale)
        if settings.raises and not (step.host_clip and step.host_clip.norm < inf):
            raise RuntimeError(
                "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it "
                "cannot be clipped. To disable this error and scale the gradients by the "
                "non-finite norm anyway, set `error_if_nonfinite=False`"
            )
        if reducer is None:
            self._skipped += step.is_skipped

    def _sum(self, launches: Launches, groups: Groups, home: torch.device) -> Tensor:
        """The sums of squares of all gradients, on one device."""
        norm, (first_of_group, count) = self.of_gradients, _indices(groups)
        sums: dict[torch.device, Tensor] = {}
        for launch in launches:
            device = launch.kind.device
            if device not in sums:
                sums[device] = norm.sums(device, count)
            launch.sum_squares(sums[device], first_of_group)
        return _on_one_device(sums, home, norm, count)

    def _note(self, failed: Tensor | None) -> None:
        """Remember the number of processes that failed. The device has skipped the step if any."""
        if failed is None or backends.is_capturing(failed.device):
            return
        if failed.device.type == "cpu":
            _raise_if(failed)
            return
        copied = torch.empty((), dtype=failed.dtype, device=CPU, pin_memory=True)
        copied.copy_(failed, non_blocking=True)
        event = torch.get_device_module(failed.device).Event()
        event.record()
        self._failures.append((copied, event))

    def _raise_late(self) -> None:
        """Raise if another process failed at an earlier step, as far as it is known."""
        while self._failures and self._failures[0][1].query():
            _raise_if(self._failures.pop(0)[0])

    def track(self, launches: Launches, groups: Groups) -> None:
        """Let the launches sum the squares of the differences that they will make."""
        first_of_group, count = _indices(groups)
        self._update_sums = {}
        for launch in launches:
            device = launch.kind.device
            if device not in self._update_sums:
                self._update_sums[device] = self.of_update.sums(device, count)
            launch.track(self._update_sums[device], first_of_group)

    def finish(
        self, launches: Launches, groups: Groups, settings: NormSettings, spread: Spread
    ) -> None:
        """Take the norm of the update, after the launches have run.

        A collective operation, unless the parameters are local.
        """
        norm, (device, reducer) = self.of_update, _home(launches)
        sums, self._update_sums = self._update_sums, {}
        numbers = _on_one_device(sums, device, norm, _indices(groups)[1])
        total, _ = spread.total(numbers, fold if reducer is None else reducer.fold)
        if reducer is None:
            norm.keep(rectification.clip(total.item()).norm)
        else:
            state = norm.state(device)
            reducer.clip(total, None, None, (inf, inf, False), state)
            norm.keep(state)
        if settings.per_parameter:
            norm.keep_each(spread.each(numbers), 1.0)

    def skipped_steps(self) -> Tensor:
        """The number of steps that were skipped because of their norm."""
        total = torch.tensor(self._skipped, dtype=torch.int64, device=CPU)
        for count in self.of_gradients.skipped():
            total = total.to(count.device, non_blocking=True) + count
        return total


def _raise_if(failed: Tensor | None) -> None:
    if failed is not None and failed.item() > 0:
        raise RuntimeError("another process failed to read its parameters for this step")


def _indices(groups: Groups) -> tuple[list[int], int]:
    """The index of the first parameter of each group, and the number of all parameters."""
    *first, count = accumulate((len(params_of(group)) for group in groups), initial=0)
    return first, count


def _home(launches: Launches) -> tuple[torch.device, Reducer | None]:
    """The device that has the norm, and what computes it there; the CPU and None for the host."""
    found = ((launch.kind.device, launch.reducer) for launch in launches if launch.reducer)
    return next(found, (CPU, None))


def _on_one_device(
    sums: dict[torch.device, Tensor], device: torch.device, norm: _Norm, count: int
) -> Tensor:
    """The sums of all devices on one of them."""
    numbers = sums.pop(device) if device in sums else norm.sums(device, count)
    for others in sums.values():
        numbers += others.to(device, non_blocking=True)
    return numbers
