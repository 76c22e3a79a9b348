"""The options of each optimizer class: its defaults, and what its groups hold."""

from collections.abc import Sequence
from copy import copy
from functools import cache
from itertools import takewhile
from typing import Any

from torch import Tensor

from .caller import warn_user
from .options import COEFFICIENTS, NAMES, OPTIONS, PLAN, RULES, UPDATING, Group
from .rectification import rho_inf


@cache
def _misspelled(key: Any) -> str | None:
    """The option whose name becomes `key` by one edit: a character more, less, other or swapped."""
    names = NAMES if isinstance(key, str) else ()
    return next((name for name in names if _are_one_edit_apart(key, name)), None)


def _are_one_edit_apart(a: str, b: str) -> bool:
    start = _common(a, b)
    a, b = a[start:], b[start:]
    end = _common(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    return max(len(a), len(b)) == 1 or (len(a) == 2 and a == b[::-1])


def _common(a: str, b: str) -> int:
    """The length of the common beginning of two strings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class OptionSet:
    """The options of an optimizer class.

    Args:
        name: Name of the class in torch.optim.
        of_torch: Keys of the parameter groups of the class in torch.optim, in their order. A group
            holds another option only if its value is not the default: torch.distributed.checkpoint
            exchanges state with torch.optim only if the groups have the same keys.
        defaults: Defaults that differ from those of the options.

    Attributes:
        name: The same name.
        of_torch: The same keys.
        defaults: The default of every option.
        ours: Names of the options that a group can leave out.
    """

    def __init__(self, name: str, of_torch: Sequence[str], **defaults: Any) -> None:
        self.name = name
        self.of_torch = tuple(of_torch)
        self.defaults: dict[str, Any] = {option.name: option.default for option in OPTIONS}
        self.defaults |= defaults
        self.ours = tuple(name for name in self.defaults if name not in self.of_torch)
        self._counts_on_device = False

    def get(self, group: Group, name: str) -> Any:
        """The value of an option; the default if the group leaves it out."""
        return group[name] if name in group else self.defaults[name]

    def is_default(self, group: Group, name: str) -> bool:
        """Whether an option has its default."""
        value, default = self.get(group, name), self.defaults[name]
        # False is not None: fused=False differs from its default.
        return bool(value == default) and (value is None) == (default is None)

    def group_defaults(self, values: Group) -> dict[str, Any]:
        """The options that a group holds: those of torch, and changed ones that torch lacks."""
        held = {name: values[name] for name in self.of_torch}
        changed = (n for n in self.ours if n in values and not self.is_default(values, n))
        return held | {name: values[name] for name in changed}

    def drop_defaults(self, group: dict[str, Any], keep: Group) -> None:
        """Remove the options that torch lacks and that have their default, except some."""
        for name in self.ours:
            if name in group and name not in keep and self.is_default(group, name):
                del group[name]

    def check(self, group: Group, index: int | None = None) -> None:
        """Check the options of a group. Messages begin as those of torch where it has one.

        Args:
            group: The group.
            index: Its index, which the message then names.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is out of range.
            RuntimeError: Options exclude each other.
        """
        values = {name: self.get(group, name) for name in self.defaults}
        found = (option.domain(values[option.name]) for option in OPTIONS)
        error = next(filter(None, found), None)
        error = error or next(filter(None, (rule(values) for rule in RULES)), None)
        if error is not None:
            where = "" if index is None else f", in parameter group {index}"
            raise type(error)(f"{error}{where}")

    def warn_of_misspelled(self, group: Group, warned: set[str]) -> None:
        """Warn of keys that are not options, but nearly the name of one.

        Args:
            group: The group.
            warned: Keys that need no warning; those of this warning are added.
        """
        for key in group:
            meant = None if key in self.defaults or key in warned else _misspelled(key)
            if meant is not None:
                warned.add(key)
                warn_user(
                    f"a parameter group has {key!r}, which is not an option and has no effect; "
                    f"did you mean {meant!r}?"
                )

    def planned(self, group: Group) -> tuple[Any, ...]:
        """The values of the options that determine the launch of a parameter."""
        return tuple(self.get(group, name) for name in PLAN)

    def differences(self, group: Group, other: Group) -> list[str]:
        """Names of options that torch lacks, change updates, and differ between two groups."""
        updating = (n for n in self.ours if n in UPDATING)
        return [name for name in updating if self.get(group, name) != self.get(other, name)]

    def counting_on_device(self) -> "OptionSet":
        """The same options, with the step counters of every group on its parameters' devices."""
        other = copy(self)
        other._counts_on_device = True
        return other

    def counts_on_device(self, group: Group) -> bool:
        """Whether the step counters of a group are on the devices of its parameters."""
        return self._counts_on_device or bool(
            self.get(group, "capturable") or self.get(group, "fused")
        )

    def coefficient_arguments(self, group: Group) -> dict[str, Any]:
        """The arguments of `radam_fused.rectification.coefficients` from a group.

        A tensor learning rate becomes a number, or a float64 tensor if the step is differentiable.
        """
        arguments = {name: self.get(group, name) for name in COEFFICIENTS}
        for name in ("lr", "eps", "weight_decay", "rectify_threshold"):
            if not isinstance(arguments[name], Tensor):
                arguments[name] = float(arguments[name])
        arguments["betas"] = tuple(float(beta) for beta in arguments["betas"])
        lr = arguments["lr"]
        if isinstance(lr, Tensor):
            arguments["lr"] = lr.double().squeeze() if group["differentiable"] else lr.item()
        return arguments

    def warn_if_never_rectified(self, group: Group) -> None:
        """Warn if ``betas[1]`` is so small that no step is rectified."""
        beta2, threshold = float(group["betas"][1]), self.get(group, "rectify_threshold")
        if self.get(group, "rectify") and rho_inf(beta2) <= threshold:
            falls_back = self.get(group, "degenerated_to_sgd")
            fallback = "SGD with momentum" if falls_back else "skipped"
            warn_user(
                f"no step is ever rectified: betas[1]={beta2} gives rho_inf={rho_inf(beta2):.4g}, "
                f"expected more than rectify_threshold={threshold:.4g}; every step is {fallback}"
            )


_BOTH = ("lr", "betas", "eps", "weight_decay")
RADAM = OptionSet(
    "RAdam",
    (*_BOTH, "maximize", "foreach", "capturable", "decoupled_weight_decay", "differentiable"),
)
_ADAM = (*_BOTH, "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")
ADAM = OptionSet(
    "Adam", (*_ADAM, "decoupled_weight_decay"), rectify=False, eps_after_bias_correction=True
)
ADAMW = OptionSet(
    "AdamW",
    ADAM.of_torch,
    rectify=False,
    eps_after_bias_correction=True,
    weight_decay=1e-2,
    decoupled_weight_decay=True,
)
