"""How the parameters of an optimizer are spread over processes, and sums over all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dtensors import is_dtensor, local
from .groups import Groups, params_of
from .sums import fold_rows

Fold = Callable[[Tensor], Tensor]  # the sum of a 1-d float64 tensor, as a 0-d one


def _sharding_groups(param: Any) -> tuple[Any, ...]:
    """The process groups over which a parameter is sharded, in the order of its mesh."""
    if not is_dtensor(param):
        return ()
    mesh = param.device_mesh
    return tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(param.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    )


class Spread:
    """The classes of parameters that are sharded over the same process groups.

    They follow from all parameters, with or without a gradient, so that every process takes part in
    the same collective operations.

    Args:
        groups: The parameter groups.
        beyond: A process group over which the parameters are spread besides, or None.

    Attributes:
        beyond: The same.
    """

    def __init__(self, groups: Groups, beyond: Any = None) -> None:
        self.beyond = beyond
        self._classes: list[tuple[Any, ...]] = []
        self._class_of: list[int] = []  # of each parameter
        self._masks: dict[torch.device, list[Tensor]] = {}
        index_of: dict[tuple[Any, ...], int] = {}
        self._device = torch.device("cpu")  # of a collective operation: a device if there is one
        for param in (param for group in groups for param in params_of(group)):
            if self._device.type == "cpu":
                self._device = local(param).device
            over = _sharding_groups(param)
            if over not in index_of:
                index_of[over] = len(self._classes)
                self._classes.append(over)
            self._class_of.append(index_of[over])
        # Each process group with the classes that are sharded over it.
        self._exchanges: list[tuple[Any, list[int]]] = []
        for group in dict.fromkeys(group for over in self._classes for group in over):
            members = [i for i, over in enumerate(self._classes) if group in over]
            self._exchanges.append((group, members))

    @property
    def is_local(self) -> bool:
        """Whether no other process has a part of a parameter."""
        return not self._exchanges and self.beyond is None

    def total(self, sums: Tensor, fold: Fold) -> tuple[Tensor, Tensor | None]:
        """The sum over all parameters, and over the processes that have parts of them.

        A collective operation, unless `is_local`.

        Args:
            sums: One number for each parameter; 1-d float64.
            fold: Sums numbers on their device.

        Returns:
            The sum, a 0-d tensor on the device of `sums`; and the number of processes that failed,
            None if none can.

        Raises:
            RuntimeError: A process group has no backend for the parameters' device.
        """
        if len(self._classes) < 2:
            totals = [fold(sums)]
        else:
            totals = [fold(torch.where(mask, sums, 0.0)) for mask in self._masks_on(sums.device)]
        if self.is_local:
            return _in_order(totals), None
        return self._exchange(totals, torch.zeros_like(totals[0]))

    def each(self, sums: Tensor) -> Tensor:
        """The sum of each parameter over the processes that have parts of it.

        A collective operation, unless `is_local`.

        Args:
            sums: One number for each parameter; 1-d float64.
        """
        masks = [] if len(self._classes) < 2 else self._masks_on(sums.device)
        for over, members in self._exchanges:
            summed = self._sum_over(over, sums)
            for i in members:
                sums = torch.where(masks[i], summed, sums) if masks else summed
        return sums if self.beyond is None else self._sum_over(self.beyond, sums)

    def fail(self) -> None:
        """Take part in the operations of `total`, to tell the other processes of an error."""
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        self._exchange([zero] * max(1, len(self._classes)), zero + 1)

    def _masks_on(self, device: torch.device) -> list[Tensor]:
        if device not in self._masks:
            classes = torch.tensor(self._class_of, device="cpu")
            found = [(classes == i).to(device) for i in range(len(self._classes))]
            self._masks[device] = found
        return self._masks[device]

    def _exchange(self, totals: list[Tensor], failed: Tensor) -> tuple[Tensor, Tensor]:
        for over, members in self._exchanges:
            numbers = torch.stack([failed, *(totals[i] for i in members)])
            failed, *summed = self._sum_over(over, numbers)
            for i, number in zip(members, summed, strict=True):
                totals[i] = number
        total = _in_order(totals)
        if self.beyond is not None:
            failed, total = self._sum_over(self.beyond, torch.stack([failed, total]))
        return total, failed

    def _sum_over(self, over: Any, numbers: Tensor) -> Tensor:
        """Sums of each number over the processes of a group, in the order of their ranks."""
        from torch import distributed

        sent = numbers.to(self._device)
        _check_backend(over, sent.device)
        size = distributed.get_world_size(over)
        found = sent.new_empty(size, sent.numel())
        distributed.all_gather(list(found), sent, group=over)
        return fold_rows(found.to(numbers.device))


def _in_order(numbers: Sequence[Tensor]) -> Tensor:
    total = numbers[0]
    for number in numbers[1:]:
        total = total + number
    return total


def _check_backend(over: Any, device: torch.device) -> None:
    try:
        over._get_backend(device)
    except RuntimeError as error:
        raise RuntimeError(
            f"the norm of the gradients needs a process group with a backend for {device.type}, "
            "where the parameters are: call init_process_group('cpu:gloo,cuda:nccl'), for example"
        ) from error
