"""What a backend implements: launches, each of which updates parameters of one kind."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..elements import Elements
from ..flat import Slot
from ..groups import Groups, Place
from .step import Step


class Kind(NamedTuple):
    """The common properties of the parameters of one launch, which can be of several groups.

    Attributes:
        device: Device of the parameters.
        param: Dtype of the parameters.
        grad: Dtype of the gradients.
        moment: Dtype of the moments.
        step: Dtype of the step counters.
        state: Names of the state tensors.
        counts_on_device: Whether the device counts the steps.
        draws: Names of the tensors that are rounded stochastically.
        has_gaps: Whether, for these, the elements of a shard do not lie side by side in the full
            tensor.
    """

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    moment: torch.dtype
    step: torch.dtype
    state: tuple[str, ...]
    counts_on_device: bool
    draws: tuple[str, ...] = ()
    has_gaps: bool = False


class Reducer(Protocol):
    """Sums numbers on a device, and computes the clip coefficient there."""

    def fold(self, numbers: Tensor) -> Tensor:
        """The sum of 1-d float64 numbers, in the order of `sums.fold`; a 0-d tensor."""

    def clip(
        self,
        square_sum: Tensor,
        grad_scale: Tensor | None,
        failed: Tensor | None,
        options: tuple[float, float, bool],
        state: Tensor,
    ) -> None:
        """Compute `rectification.clip`.

        Args:
            square_sum: Its argument; 0-d float64.
            grad_scale: Its argument; one float32 number, or None for 1.
            failed: A number of processes. If it is not 0, the step is skipped, but not counted.
            options: The arguments max_norm, skip_above and skips_nonfinite.
            state: Receives norm, coefficient and skips; skips is added to a fourth number.
        """


class Launch(Protocol):
    """Updates parameters of one kind. All launches of a step read, then compute, then run."""

    kind: Kind
    # Whether `run` is one call of the extension, after which it does nothing more. A handler
    # of a signal, in Python, then cannot run between its parts.
    is_atomic: bool
    # Whether a captured graph uses memory of the launch; the launch must then live as long.
    is_replayed: bool
    # Sums on the launch's device; None if the host does.
    reducer: Reducer | None

    def add(
        self,
        place: Place,
        param: Tensor,
        types: Collection[type],
        slot: Slot | None,
        elements: Elements | None,
    ) -> None:
        """Add a parameter.

        Args:
            place: Its position in the groups.
            param: The parameter.
            types: The types of its tensors, or of their local tensors.
            slot: Its slot in a flat buffer, which it must not leave; or None.
            elements: The numbers of its elements, if the kind draws random bits.
        """

    def read(self, groups: Groups, states: Mapping[Tensor, Any], is_separate: bool) -> bool:
        """Read the tensors of every parameter that has a gradient. Writes nothing.

        Args:
            groups: The optimizer's parameter groups.
            states: The optimizer's state.
            is_separate: Whether `sum_squares` will follow.

        Returns:
            False if a parameter does not fit the launch any more; `misfit` names it.
        """

    def misfit(self) -> tuple[Place, str]:
        """The place of the parameter that `read` rejected, and the name of its tensor."""

    def misplaced(self) -> list[tuple[Place, Tensor, Tensor]]:
        """Place, parameter and gradient where these two are DTensors placed differently."""

    def take_gradients(self, redistributed: list[Tensor]) -> bool:
        """Take the gradients of `misplaced`, redistributed; False if `misfit` does not fit."""

    def sum_squares(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """Write the sum of the squares of each gradient that was read.

        Args:
            sums: Receives them: float64 on the launch's device, one for each parameter of the
                optimizer.
            first_of_group: The index in it of the first parameter of each group.
        """

    def track(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """Let the next `run` write the sums of the squares of the differences to each parameter.

        Args:
            sums: See `sum_squares`.
            first_of_group: See `sum_squares`.
        """

    def has_moved(self) -> bool:
        """Whether a tensor that the step writes lies at another address than at the last step."""

    def written_ranges(self) -> list[tuple[Place, str, int, int]]:
        """The memory that the step writes.

        Returns:
            The place, the name of the tensor, its first address and its end; 0 and 0 if it has
            gaps.
        """

    def compute(self, step: Step) -> None:
        """Compute the coefficients, or the options for the device. Writes no tensor."""

    def run(self) -> None:
        """Update the parameters that were read, and count the step."""

    def release(self) -> None:
        """Release the tensors that were read, without a step."""
