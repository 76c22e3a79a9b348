"""What the optimizer asks of a backend."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..flat import FlatBuffers
from ..inputs import StepInputs

State = dict[str, Any]


class Graph(Protocol):
    """A graph that was captured from a step."""

    @property
    def is_alive(self) -> bool:
        """Whether it, or what was instantiated from it, still exists."""


class Launch(Protocol):
    """Some parameters of one group, stepped together."""

    def refresh(self, inputs: StepInputs) -> bool:
        """Read every tensor anew, without writing anything.

        Args:
            inputs: What the group is to compute with.

        Returns:
            False if some tensor is no longer what the launch was made for, which calls for a new
            launch.
        """

    def run(self) -> Graph | None:
        """Step what the last refresh() read and count the step.

        Returns:
            The graph into which the step was captured, if it was.
        """


class Setup(NamedTuple):
    """What launches are made for, besides their tensors.

    Attributes:
        amsgrad: Whether the states hold running maxima.
        counts_on_device: Whether an engine that can is to count its steps on the device.
        flat: The buffers that hold the parameters and their moments, or None.
    """

    amsgrad: bool
    counts_on_device: bool = False
    flat: FlatBuffers | None = None


class Backend(NamedTuple):
    """One engine.

    Attributes:
        name: As in ``FusedRAdam(backend=...)``.
        unavailable: Why this installation cannot run it on this machine, or None.
        refuses: Why it cannot step a parameter, or None.
        launches: Makes the launches for parameters it does not refuse. May replace each state's
            ``step`` by a view of a common counter.
        counts_on_device: Whether it can count its steps where the parameters are.
        only_by_name: Whether "auto" passes over it.
    """

    name: str
    unavailable: Callable[[], str | None]
    refuses: Callable[[Tensor], str | None]
    launches: Callable[[Sequence[Tensor], Sequence[State], Setup], list[Launch]]
    counts_on_device: bool
    only_by_name: Callable[[], bool] = lambda: False
