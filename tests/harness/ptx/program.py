"""A kernel as basic blocks of functions, with the coverage of its instructions."""

from collections import Counter

from .instructions import reader, translate
from .machine import PtxError
from .parsing import parse

_ENDINGS = {"bra", "bra.uni", "ret", "bar.sync"}


def programs(text):
    """The programs of a module's kernels, by name."""
    return {name: Program(kernel) for name, kernel in parse(text).items()}


class Program:
    """A kernel that `run` executes. It counts the threads that execute each basic block."""

    def __init__(self, kernel):
        self.kernel = kernel
        instructions = kernel.instructions
        starts = {0, *kernel.labels.values()}
        starts |= {inst.index + 1 for inst in instructions if inst.name in _ENDINGS}
        starts = sorted(start for start in starts if start < len(instructions))
        ends = [*starts[1:], len(instructions)]
        self.blocks = [instructions[s:e] for s, e in zip(starts, ends, strict=True)]
        self.end = len(starts)  # the number of the block where a thread is that has ended
        self._numbers = {start: number for number, start in enumerate(starts)}
        self._steps = {}
        self.executed = Counter()  # threads, by block
        self._selected = Counter()  # threads, by guarded instruction

    def steps(self, number):
        """The instructions of a block with their functions, made at the first execution."""
        if number not in self._steps:
            self._steps[number] = [(inst, self._step(inst)) for inst in self.blocks[number]]
        return self._steps[number]

    def _step(self, instruction):
        try:
            step = self._branch(instruction) or translate(self.kernel, instruction)
            if instruction.guard is None:
                return step
            test = reader(self.kernel, instruction.guard, "pred")
        except (PtxError, KeyError, ValueError) as error:
            raise PtxError(f"{instruction}: {error}") from error
        index, wanted, selected = instruction.index, not instruction.negated, self._selected

        def guarded(threads, which):
            chosen = threads.subset(which, test(threads, which) == wanted)
            threads.check_known()
            if count := threads.count(chosen):
                selected[index] += count
                step(threads, chosen)

        return guarded

    def _branch(self, instruction):
        if instruction.name == "ret":
            target = self.end
        elif instruction.name in ("bra", "bra.uni"):
            target = self._numbers.get(self.kernel.labels[instruction.operands[0]], self.end)
        else:
            return None
        return lambda threads, which: threads.jump(which, target)

    def _executed(self):
        for number, block in enumerate(self.blocks):
            if self.executed[number]:
                for inst in block:
                    if not inst.guard or inst.name == "bra" or self._selected[inst.index]:
                        yield inst

    def forget(self):
        """Reset the coverage."""
        self.executed.clear()
        self._selected.clear()

    def coverage(self):
        """The number of instructions that some thread executed, and the number of all."""
        return sum(1 for _ in self._executed()), len(self.kernel.instructions)

    def opcodes(self):
        """The names of the instructions that some thread executed."""
        return {instruction.name for instruction in self._executed()}
