"""The CPU backend: runs the kernel of csrc/cpu."""

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
    """Updates parameters with one call of the CPU kernel."""

    instruction_set: str | None = None  # None: the best one; tests set the others
    prefetch: bool | None = None  # None: depends on the processor; tests set both

    def run(self) -> None:
        """See Launch.run."""
        if self.table.is_active():
            chosen = self.instruction_set or instruction_sets()[0]
            _C.cpu_step(self.table, torch.get_num_threads(), chosen, self.prefetch)


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
