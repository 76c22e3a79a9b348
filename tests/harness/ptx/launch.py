"""Runs the threads of a grid through a program, some blocks at a time."""

import numpy as np

from .machine import PARAMETERS, SHARED, SHARED_STRIDE, UNSIGNED, WARP, PtxError
from .races import check_races


class Threads:
    """The threads of some blocks. Those at the lowest basic block run first.

    Every register is an array with an element for each thread. `which` selects threads: a slice
    of all, or their indices.
    """

    def __init__(self, program, grid, size, blocks, first, memory):
        self.program, self.memory, self.size = program, memory, size
        n = self.n = len(blocks) * size
        tid = np.tile(np.arange(size, dtype=np.uint32), len(blocks))
        ctaid = np.repeat(np.array(blocks, np.uint32), size)
        self.special = {
            "%tid.x": tid,
            "%ctaid.x": ctaid,
            "%nctaid.x": np.full(n, grid, np.uint32),
        }
        self.block = np.repeat(np.arange(len(blocks), dtype=np.uint64), size)
        # From 1, because 0 means no warp; a warp has threads of one block only.
        self.number = (first + self.block.astype(np.int64)) * whole_warps(size) + tid + 1
        self.interval = np.zeros(n, np.int64)
        self.at = np.zeros(n, np.int32)
        self._names = list(program.kernel.registers)
        self._dtypes = [UNSIGNED[r.bits] for r in program.kernel.registers.values()]
        # The values of a register and, unless all threads have a known one, those that have.
        self._registers = [None] * len(self._names)
        # Of the instruction that is executed: the threads whose operands are unknown, or None; and
        # a register that is.
        self.unknown, self._culprit = None, ""

    def _held(self, slot):
        if self._registers[slot] is None:
            values = np.zeros(self.n, self._dtypes[slot])
            self._registers[slot] = [values, np.zeros(self.n, bool)]
        return self._registers[slot]

    def get(self, slot, which):
        values, known = self._held(slot)
        if known is not None and not known[which].all():
            unknown = ~known[which]
            self.unknown = unknown if self.unknown is None else self.unknown | unknown
            self._culprit = self._names[slot]
        return values[which]

    def put(self, slot, which, value):
        held = self._held(slot)
        held[0][which] = value
        if self.unknown is not None:
            # Compilers compute with what a thread has not loaded, as long as nothing depends on it.
            if held[1] is None:
                held[1] = np.ones(self.n, bool)
            held[1][which] = ~self.unknown
        elif held[1] is not None:
            held[1][which] = True
            if isinstance(which, slice) or held[1].all():
                held[1] = None

    def check_known(self):
        """Raise if the instruction depends on a value that nothing has written."""
        if self.unknown is not None:
            raise PtxError(f"{self._culprit} is read before it is written")

    def count(self, which):
        return self.n if isinstance(which, slice) else which.size

    def subset(self, which, test):
        if isinstance(which, slice):
            return which if test.all() else np.flatnonzero(test)
        return which[test]

    def who(self, which):
        return self.number[which], self.interval[which]

    def jump(self, which, target):
        self.at[which] = target

    def barrier(self, which):
        here = np.zeros(self.n, bool)
        here[which] = True
        waiting = here.reshape(-1, self.size)
        ended = (self.at == self.program.end).reshape(-1, self.size)
        if not (waiting | ended)[waiting.any(axis=1)].all():
            raise PtxError("not all threads of a block are at the barrier")
        self.interval = self.interval + here

    def run(self, limit):
        for _ in range(limit):
            lowest = int(self.at.min())
            if lowest == self.program.end:
                return
            here = self.at == lowest
            which = slice(None) if here.all() else np.flatnonzero(here)
            self.program.executed[lowest] += self.count(which)
            self.at[which] = lowest + 1
            for instruction, step in self.program.steps(lowest):
                self.unknown = None
                try:
                    step(self, which)
                except PtxError as error:
                    raise PtxError(f"{instruction}: {error}") from error
        raise PtxError("the launch does not end")


def whole_warps(threads):
    return -(-threads // WARP) * WARP


def run(
    program,
    grid,
    arguments,
    memory,
    *,
    threads,
    blocks=None,
    shared_bytes=0,
    at_once=16,
    limit=100_000,
):
    """Run a kernel.

    Args:
        program: Program of the kernel.
        grid: Number of blocks.
        arguments: Bytes of the parameters.
        memory: Memory that the kernel may touch besides.
        threads: Number of threads in a block.
        blocks: Blocks that run; by default all.
        shared_bytes: Size of the dynamic shared memory.
        at_once: Number of blocks whose threads run together.
        limit: Number of basic blocks through which they may run.
    """
    kernel = program.kernel
    if kernel.threads is not None and threads > kernel.threads:
        raise PtxError(f"{threads} threads in a block, made for {kernel.threads}")
    shared_bytes += kernel.shared_bytes
    if len(arguments) != kernel.param_bytes:
        raise PtxError(f"{len(arguments)} bytes of parameters for {kernel.param_bytes}")
    blocks = range(grid) if blocks is None else blocks
    if len(blocks) and not 0 <= min(blocks) <= max(blocks) < grid:
        raise PtxError("blocks outside of the grid")
    regions = list(memory.regions)
    memory.allocate("the parameters", PARAMETERS, arguments, False, "param")
    try:
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), at_once):
                some = blocks[first : first + at_once]
                shared = [
                    memory.allocate_shared(SHARED + i * SHARED_STRIDE, shared_bytes)
                    for i in range(len(some) if shared_bytes else 0)
                ]
                Threads(program, grid, threads, some, first, memory).run(limit)
                for region in shared:
                    check_races(region, whole_warps(threads))
                memory.remove(shared)
        for region in regions:
            memory.same_warp_reads_before_writes += check_races(region, whole_warps(threads))
    finally:
        memory.remove([region for region in memory.regions if region not in regions])
        for region in regions:
            region.accesses = []
