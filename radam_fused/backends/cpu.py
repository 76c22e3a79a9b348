"""The CPU backend: csrc/cpu through the extension."""

from functools import cache

import torch
from torch import Tensor

from ..extension import _C, why_not
from ..state import has_own_memory
from .launches import TableLaunch


@cache
def instruction_sets() -> list[str]:
    """Instruction sets that the CPU backend can use on this machine, best first."""
    return [] if why_not else list(_C.instruction_sets())


class CpuLaunch(TableLaunch):
    """Parameters stepped by one call of the CPU kernel."""

    instruction_set: str | None = None  # None: the best; tests force the others
    prefetch: bool | None = None  # None: where the processor gains by it; tests force both

    def run(self) -> None:
        """See Launch.run."""
        if self.table.is_active():
            chosen = self.instruction_set or instruction_sets()[0]
            _C.cpu_step(self.table, torch.get_num_threads(), chosen, self.prefetch)


def unavailable() -> str | None:
    """Why this installation cannot run it, or None."""
    return why_not


def unsupported(param: Tensor) -> str | None:
    """Why it cannot step a parameter, or None."""
    if param.device.type != "cpu":
        return f"it is on {param.device}, not on the CPU"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return None
