"""Options that reproduce the RAdam of other libraries.

The libraries differ in the threshold and its comparison, in the steps before it, in the kind of
weight decay and in the place of eps. A preset sets these, and the defaults that differ from
torch.optim.RAdam; it does not set the learning rate and the weight decay.
"""

from collections.abc import Mapping
from math import nextafter
from types import MappingProxyType
from typing import Any, NoReturn

__all__ = ["PRESETS"]

# rho_t >= 5 is rho_t > the next number below 5.
_FROM_FIVE = nextafter(5.0, 0.0)

_OFFICIAL: dict[str, Any] = {
    "rectify_threshold": _FROM_FIVE,
    "degenerated_to_sgd": False,
    "decoupled_weight_decay": True,
    "decay_skipped_steps": False,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "torch": {},
    "official": _OFFICIAL,
    "labml": {"rectify_threshold": _FROM_FIVE, "decoupled_weight_decay": True},
    "optimi": {"betas": (0.9, 0.99), "eps": 1e-6, "eps_after_bias_correction": True},
    "pytorch_optimizer": _OFFICIAL,
    "keras": {
        "rectify_threshold": _FROM_FIVE,
        "decoupled_weight_decay": True,
        "eps": 1e-7,
        "eps_after_bias_correction": True,
    },
    "optax": {"rectify_threshold": _FROM_FIVE, "eps_after_bias_correction": True},
    # The paper has no eps. This one vanishes in every nonzero root and only prevents 0 / 0.
    "paper": {"rectify_threshold": 4.0, "eps": 2.0**-126},
}


class _Presets(dict[str, Mapping[str, Any]]):
    def __missing__(self, name: object) -> NoReturn:
        raise KeyError(f"no preset is named {name!r}, expected one of {', '.join(self)}")


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    _Presets((name, MappingProxyType(options)) for name, options in _PRESETS.items())
)
