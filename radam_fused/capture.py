"""What CUDA graphs hold fast that were captured from a step."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .backends import Graph, Launch
from .hyperparameters import COEFFICIENT_NAMES

# The options that a replay no longer reads; a learning rate that is a tensor is not baked in.
_BAKED = frozenset((*COEFFICIENT_NAMES, "amsgrad", "capturable"))


class Captures:
    """The graphs that steps were captured into and that still exist."""

    def __init__(self) -> None:
        self._held: list[tuple[Graph, list[Launch]]] = []
        self._stepped: list[bool] = []

    def add(self, graphs: Iterable[Graph], launches: list[Launch], stepped: list[bool]) -> None:
        """Remember a capture.

        Args:
            graphs: Those of its launches.
            launches: Whose memory the graphs use, kept alive with them.
            stepped: For each parameter of the optimizer, whether it had a gradient.
        """
        self._held = [(graph, kept) for graph, kept in self._held if graph.is_alive]
        self._held += [(graph, launches) for graph in graphs]
        self._stepped = stepped

    def __bool__(self) -> bool:
        return any(graph.is_alive for graph, _ in self._held)

    def forbid(self, what: str) -> None:
        """Raise while a graph exists.

        Args:
            what: What its replays would ignore.

        Raises:
            RuntimeError: A graph exists.
        """
        if self and not self._all_die():
            raise RuntimeError(
                f"{what}: replays of the CUDA graph that step() was captured into would ignore "
                "that; delete the graph first and capture another one afterwards"
            )

    def _all_die(self) -> bool:
        """Whether the graphs were deleted and only CUDA had not said so yet, which it does late."""
        if torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
            for _ in range(40):
                if not self:
                    return True
                time.sleep(0.005)
        return False

    def check_gradients(self, stepped: list[bool]) -> None:
        """Raise where other parameters have a gradient than when a graph was captured."""
        if self and stepped != self._stepped:
            index = next(i for i, had in enumerate(self._stepped) if had != stepped[i])
            change = "has lost its gradient" if self._stepped[index] else "has got a gradient"
            self.forbid(f"parameter {index} of the optimizer {change} since")


class CapturedGroup(dict[str, Any]):
    """A parameter group whose options a graph has baked in: changing one raises."""

    def __init__(self, group: dict[str, Any], captures: Captures) -> None:
        super().__init__(group)
        self._captures = captures

    def __setitem__(self, key: str, value: Any) -> None:
        if key in _BAKED and self._captures:
            held = self.get(key)
            if isinstance(held, Tensor):
                # Written in place it would be seen.
                same = held is value
            else:
                same = not isinstance(value, Tensor) and held == value
            if not same:
                self._captures.forbid(f"{key} was set to {value!r}")
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if key in _BAKED:
            self._captures.forbid(f"{key} was removed")
        super().__delitem__(key)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As dict.update, checking every option."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> "CapturedGroup":  # type: ignore[override, misc]
        self.update(other)
        return self

    def pop(self, key: str, *default: Any) -> Any:
        """As dict.pop, checking the option."""
        if key in self and key in _BAKED:
            self._captures.forbid(f"{key} was removed")
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As dict.setdefault, checking the option."""
        if key not in self:
            self[key] = default
        return self[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
