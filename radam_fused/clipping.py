"""What an optimizer has for the norm of its gradients: its settings, and the last results."""

from collections.abc import Mapping
from functools import cached_property
from math import inf
from typing import Any

from torch import Tensor

from .norms import Norms, NormSettings
from .option_sets import OptionSet
from .settings import DEFAULTS, Attribute


class Clipping:
    """The base of an optimizer that can clip its gradients."""

    max_grad_norm = Attribute()
    error_if_nonfinite = Attribute()
    skip_nonfinite = Attribute()
    skip_above = Attribute()
    track_update_norm = Attribute()
    per_parameter_norms = Attribute()
    grad_norm_group = Attribute()
    _norms: Norms
    _options: OptionSet  # of the class; of an optimizer that can skip steps, its own

    def _set(self, values: dict[str, Any]) -> None:
        """Set the settings among some values."""
        for name, default in DEFAULTS.items():
            setattr(self, name, values.get(name, default))

    def _changed_settings(self) -> dict[str, Any]:
        """The settings that do not have their default."""
        return {
            name: self.__dict__[name]
            for name, default in DEFAULTS.items()
            if self.__dict__.get(name, default) is not default
        }

    def _check_no_settings(self, group: Mapping[str, Any], index: int) -> None:
        """Check that a group has no setting of its own. ZeRO-1 copies those of the optimizer.

        Raises:
            ValueError: It has one.
        """
        for name in DEFAULTS:
            if name in group and group[name] is not getattr(self, name):
                raise ValueError(
                    f"parameter group {index} has {name}={group[name]!r}, expected it as an "
                    "argument of the optimizer: it is no option of a group"
                )

    def _count_on_device(self) -> None:
        """Count the steps where the parameters are, if the norm decides which of them count."""
        if self._skips:
            self._options = self._options.counting_on_device()

    @property
    def _skips(self) -> bool:
        """Whether a step can be skipped because of its norm."""
        return bool(self.skip_nonfinite) or self.skip_above is not None

    @cached_property
    def _norm_settings(self) -> NormSettings | None:
        """The norms that a step takes; None if it takes none. Setting an attribute resets it."""
        wanted = self._skips or self.error_if_nonfinite or self.per_parameter_norms
        of_gradients = self.max_grad_norm is not None or bool(wanted)
        if not of_gradients and not self.track_update_norm:
            return None
        return NormSettings(
            of_gradients,
            inf if self.max_grad_norm is None else float(self.max_grad_norm),
            inf if self.skip_above is None else float(self.skip_above),
            self._skips,
            bool(self.error_if_nonfinite),
            bool(self.track_update_norm),
            bool(self.per_parameter_norms),
            self.grad_norm_group,
        )

    @property
    def grad_norm(self) -> Tensor | None:
        """The 2-norm of all gradients of the last step, before clipping.

        A 0-d float64 tensor on the device of the parameters (the first device, if there are
        several); None before the first step that takes a norm. Reading it does not wait. After a
        replay of a CUDA graph, it is the norm of the replay.
        """
        return self._norms.of_gradients.last()

    @property
    def update_norm(self) -> Tensor | None:
        """The 2-norm of the differences that the last step made to the stored parameters.

        With ``master_weights``, of the differences to the float32 values.

        0 if it was skipped; None without ``track_update_norm``. A tensor like `grad_norm`. A spike
        of it precedes a spike of the loss.
        """
        return self._norms.of_update.last()

    @property
    def grad_norms(self) -> Tensor | None:
        """The norm of each parameter's gradient, in the order of the groups.

        A 1-d float64 tensor; 0 for a parameter without a gradient. None without
        ``per_parameter_norms``.
        """
        return self._norms.of_gradients.last_each()

    @property
    def update_norms(self) -> Tensor | None:
        """The norm of each parameter's update, in the order of the groups.

        A tensor like `grad_norms`. None without ``per_parameter_norms`` and ``track_update_norm``.
        """
        return self._norms.of_update.last_each()

    @property
    def skipped_steps(self) -> Tensor:
        """The number of steps that were skipped because of their norm; not in the state_dict.

        A 0-d int64 tensor on the device of the parameters. Reading it does not wait.
        """
        return self._norms.skipped_steps()
