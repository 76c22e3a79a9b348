"""What the optimizer asks of a backend."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..rectification import Coefficients

State = dict[str, Any]


class Launch(Protocol):
    """Some parameters of one group, stepped together."""

    def refresh(self) -> list[float] | None:
        """Read every tensor anew, without writing anything.

        Returns:
            The distinct step counts that the parameters with a gradient are about to reach; None if
            some tensor is no longer what the launch was made for, which calls for a new launch.
        """

    def run(self, coefficients: Sequence[Coefficients]) -> None:
        """Step what the last refresh() read and count the step.

        Args:
            coefficients: Those of each step count that refresh() returned, in its order.
        """


class Backend(NamedTuple):
    """One engine.

    Attributes:
        name: As in ``FusedRAdam(backend=...)``.
        unavailable: Why this installation cannot run it on this machine, or None.
        refuses: Why it cannot step a parameter, or None.
        launches: Makes the launches for parameters it does not refuse, of (params, states,
            amsgrad). May replace each state's ``step`` by a view of a common counter.
    """

    name: str
    unavailable: Callable[[], str | None]
    refuses: Callable[[Tensor], str | None]
    launches: Callable[[Sequence[Tensor], Sequence[State], bool], list[Launch]]
