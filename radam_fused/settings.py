"""The options of an optimizer, not of its groups: those of the gradient norm."""

from typing import Any, NamedTuple

from .values import Domain, flag, limit


def _any(value: Any) -> None:
    """A value that is checked where it is used."""


class Setting(NamedTuple):
    """One option.

    Attributes:
        name: Its name, also of the optimizer's attribute.
        default: Its default.
        doc: Its documentation.
        domain: Its values.
        is_fixed: Whether only the constructor sets it.
    """

    name: str
    default: Any
    doc: str
    domain: Domain
    is_fixed: bool = False


SETTINGS = (
    Setting(
        "max_grad_norm",
        None,
        "Clip the gradients in the step: multiply them by ``min(1, max_grad_norm / (norm + "
        "1e-6))``, where norm is the 2-norm of all gradients of the optimizer, as "
        "`torch.nn.utils.clip_grad_norm_` does. The gradients themselves are not written. "
        "Infinity: only take the norm. None: take no norm. The attribute can be changed between "
        "steps; a state_dict does not contain it.",
        limit("max_grad_norm"),
    ),
    Setting(
        "error_if_nonfinite",
        False,
        "Raise if the norm of the gradients is infinite or NaN, before anything changes. Waits for "
        "the device.",
        flag("error_if_nonfinite"),
    ),
    Setting(
        "skip_nonfinite",
        False,
        "Skip a step whose gradients have an infinite norm or NaN: nothing changes, and the step "
        "is not counted. The step counters are on the devices of the parameters.",
        flag("skip_nonfinite"),
        is_fixed=True,
    ),
    Setting(
        "skip_above",
        None,
        "Skip a step whose gradients have a larger norm than this number, or NaN, in the same way.",
        limit("skip_above"),
        is_fixed=True,
    ),
    Setting(
        "track_update_norm",
        False,
        "Take the 2-norm of the differences that a step makes to the stored parameters, or to "
        "their masters, in the step itself: ``update_norm``.",
        flag("track_update_norm"),
        is_fixed=True,
    ),
    Setting(
        "per_parameter_norms",
        False,
        "Keep the norm of each parameter's gradient: ``grad_norms``; and, with "
        "``track_update_norm``, of its update: ``update_norms``.",
        flag("per_parameter_norms"),
        is_fixed=True,
    ),
    Setting(
        "grad_norm_group",
        None,
        "A process group over which the gradients are spread although they are no DTensors, as "
        "with FSDP1, ZeRO-1 and pipeline stages: the squared norm is summed over its processes.",
        _any,
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}
DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


CACHE = "_norm_settings"  # the attribute of an optimizer that follows from its settings


class Attribute:
    """The attribute of an optimizer that holds the setting of the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._setting = BY_NAME[name]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return instance.__dict__.get(self._setting.name, self._setting.default)

    def __set__(self, instance: Any, value: Any) -> None:
        name, _, _, domain, is_fixed = self._setting
        if is_fixed and name in instance.__dict__:
            raise AttributeError(f"{name} is fixed by the constructor")
        if error := domain(value):
            raise error
        instance.__dict__[name] = value
        instance.__dict__.pop(CACHE, None)
