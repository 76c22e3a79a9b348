"""The CPU engine: csrc/cpu through the extension."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..inputs import StepInputs
from ..rectification import Coefficients
from ..tensors import has_own_memory
from . import extension
from .base import Backend, Launch, Setup, State
from .buckets import Bucket, Table, buckets


@cache
def instruction_sets() -> list[str]:
    """Instruction sets that the CPU engine can use on this machine, best first."""
    return [] if extension.why_not else list(extension._C.instruction_sets())


class CpuLaunch:
    """A bucket stepped by one call of the CPU kernel."""

    instruction_set: str | None = None  # None: the best; tests force the others

    def __init__(self, bucket: Bucket) -> None:
        self._table = Table(bucket, extension.TensorTable, chunk=1, counts_on_device=False)
        self._due: list[Coefficients] = []

    def refresh(self, inputs: StepInputs) -> bool:
        """See Launch.refresh."""
        self._due = []
        if inputs.overflows:
            return True
        counts = self._table.refresh(inputs.eps)
        if counts is None:
            return False
        self._due = [inputs.coefficients(count) for count in counts]
        return True

    def run(self) -> None:
        """See Launch.run."""
        if not self._due:
            return
        # Before the kernel, while the tensors are still in cache.
        self._table.announce_writes()
        instruction_set = self.instruction_set or instruction_sets()[0]
        threads = torch.get_num_threads()
        extension._C.cpu_step(self._table.rows, self._due, threads, instruction_set)
        self._table.finish()


def _launches(params: Sequence[Tensor], states: Sequence[State], setup: Setup) -> list[Launch]:
    return [CpuLaunch(bucket) for bucket in buckets(params, states, setup)]


def _refuses(param: Tensor) -> str | None:
    if param.device.type != "cpu":
        return f"it is on {param.device}, not in the CPU's memory"
    if not has_own_memory(param):
        return f"{type(param).__name__} keeps its memory in other tensors"
    return None


BACKEND: Backend = Backend(
    name="cpu",
    unavailable=lambda: extension.why_not,
    refuses=_refuses,
    launches=_launches,
    counts_on_device=False,
)
