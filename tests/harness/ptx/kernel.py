"""A compiled kernel with its number of threads and its shared memory."""

from functools import cache
from typing import NamedTuple

from .launch import run
from .machine import PtxError
from .program import Program, programs


@cache
def program_of(text):
    """The program of a module with one kernel."""
    [program] = programs(text).values()
    return program


class Kernel(NamedTuple):
    text: str
    program: Program
    threads: int
    shared_bytes: int = 0

    def run(self, grid, arguments, memory, blocks=None):
        """Run it; no lane of a warp may write an element that another lane has just read."""
        launch = {"threads": self.threads, "shared_bytes": self.shared_bytes, "blocks": blocks}
        run(self.program, grid, arguments, memory, **launch, limit=10_000)
        if places := memory.same_warp_reads_before_writes:
            raise PtxError(
                f"{self.program.kernel.name}: {places} places are written after other lanes of the "
                "warp have read them, with no barrier between"
            )
