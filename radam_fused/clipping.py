"""What an optimizer has for the norm of its gradients: its settings, and the last results."""

from math import inf
from typing import Any

from torch import Tensor

from .norms import ClipSettings, Norms
from .options import OptionSet
from .settings import DEFAULTS, Attribute


class Clipping:
    """The base of an optimizer that can clip its gradients."""

    max_grad_norm = Attribute()
    error_if_nonfinite = Attribute()
    skip_nonfinite = Attribute()
    skip_above = Attribute()
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

    def _count_on_device(self) -> None:
        """Count the steps where the parameters are, if the norm decides which of them count."""
        if self._skips:
            self._options = self._options.counting_on_device()

    @property
    def _skips(self) -> bool:
        """Whether a step can be skipped because of its norm."""
        return bool(self.skip_nonfinite) or self.skip_above is not None

    def _clip_settings(self) -> ClipSettings | None:
        """The settings of a step; None if it takes no norm."""
        if self.max_grad_norm is None and not self._skips:
            return None
        return ClipSettings(
            inf if self.max_grad_norm is None else float(self.max_grad_norm),
            inf if self.skip_above is None else float(self.skip_above),
            self._skips,
            bool(self.error_if_nonfinite),
            self.grad_norm_group,
        )

    @property
    def grad_norm(self) -> Tensor | None:
        """The 2-norm of all gradients of the last step, before clipping.

        A 0-d float64 tensor on the device of the parameters (the first device, if there are
        several); None before the first step that takes a norm. Reading it does not wait. After a
        replay of a CUDA graph, it is the norm of the replay.
        """
        return self._norms.grad_norm()

    @property
    def skipped_steps(self) -> Tensor:
        """The number of steps that were skipped because of their norm; not in the state_dict.

        A 0-d int64 tensor on the device of the parameters. Reading it does not wait.
        """
        return self._norms.skipped_steps()
