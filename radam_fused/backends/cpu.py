"""The CPU backend: runs the kernel of csrc/cpu."""

import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..extension import _C, unavailable_reason
from ..tensors import has_own_memory
from .launches import TableLaunch


@cache
def instruction_sets() -> list[str]:
    """The instruction sets of the CPU kernel that this machine has, best first."""
    return [] if unavailable_reason else list(_C.instruction_sets())


class CpuLaunch(TableLaunch):
    """Updates parameters with one call of the CPU kernel.

    A forked process has none of the threads that OpenMP has started in its parent, and would wait
    for them, so there one thread runs a step.
    """

    has_run = False  # whether a step of this process, or of its parent, may have started threads
    is_forked = False

    instruction_set: str | None = None  # None: the best one; tests set the others
    prefetch: bool | None = None  # None: depends on the processor; tests set both

    def sum_squares(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """See Launch.sum_squares."""
        _C.cpu_sum_squares(self.table, first_of_group, sums, *self._how())

    def run(self) -> None:
        """See Launch.run."""
        if self.table.is_active():
            tracked, self._tracked = self._tracked or (), None
            _C.cpu_step(self.table, *self._how(), self.prefetch, *tracked)

    def _how(self) -> tuple[int, str]:
        """The number of threads and the instruction set."""
        CpuLaunch.has_run = True
        threads = 1 if self.is_forked else torch.get_num_threads()
        return threads, self.instruction_set or instruction_sets()[0]


def _note_fork() -> None:
    CpuLaunch.is_forked |= CpuLaunch.has_run


os.register_at_fork(after_in_child=_note_fork)


def unavailable() -> str | None:
    """The reason why this installation cannot run; None if it can."""
    return unavailable_reason


def unsupported(param: Tensor) -> str | None:
    """The reason why the backend cannot update a parameter; None if it can."""
    if param.device.type != "cpu":
        return f"it is on {param.device}, expected the CPU"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return None
