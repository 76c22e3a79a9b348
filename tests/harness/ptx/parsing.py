"""Parses the text of a PTX module: kernels, parameters, registers, labels, instructions."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from .machine import BITS, PtxError


class Register(NamedTuple):
    slot: int
    bits: int


@dataclass
class Instruction:
    name: str
    operands: list[str]
    guard: str | None  # the predicate register that selects its threads
    negated: bool
    index: int
    line: int
    text: str

    def __str__(self):
        return f"line {self.line}: {self.text}"


@dataclass
class Kernel:
    name: str
    threads: int | None  # the most in a block
    shared: list[str]  # names of the shared memory
    shared_bytes: int  # of which the module declares the size
    params: dict[str, tuple[int, int]] = field(default_factory=dict)  # offsets and sizes
    param_bytes: int = 0
    registers: dict[str, Register] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def declare(self, name, bits):
        self.registers[name] = Register(len(self.registers), bits)

    @cached_property
    def unwritten_parts(self):
        """Registers that are packed from some that no instruction writes: the numbers of these.

        Compilers leave out a part that is not used.
        """
        written, packs = set(), []
        for instruction in self.instructions:
            if instruction.operands and not instruction.name.startswith("st."):
                target, *sources = instruction.operands
                written |= set(split(target[1:-1]) if target.startswith("{") else [target])
                if instruction.name.startswith("mov.") and sources[0].startswith("{"):
                    packs.append((target, split(sources[0][1:-1])))
        found = {}
        for target, parts in packs:
            missing = {i for i, part in enumerate(parts) if part[0] == "%" and part not in written}
            if missing and len(missing) < len(parts):
                found.setdefault(target, set()).update(missing)
        return found


def split(text):
    """Split a list at the commas outside of brackets."""
    return [part.strip() for part in re.findall(r"(?:[^,{\[]|\{[^}]*\}|\[[^\]]*\])+", text)]


def parse(text):
    """The kernels of a module, by name."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*|^\s*?\.(?:loc|file|pragma)\b[^\n]*", "", text, flags=re.M)
    if re.search(r"^\s*\.(?:visible\s+)?(?:global|const)\b", text, re.M):
        raise PtxError("variables of a module are not known")
    shared = re.findall(r"\.extern\s+\.shared[^;]*?([\w$]+)\[\]\s*;", text)
    static = re.findall(r"^\s*\.shared\s+\.align \d+ \.b8 ([\w$]+)\[(\d+)\];", text, re.M)
    if len(shared) + len(static) > 1:
        raise PtxError("several variables in shared memory are not known")
    kernels = {}
    for entry in re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text):
        threads = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)", entry[3])
        most = int(threads[1]) if threads else None
        names = [*shared, *(name for name, _ in static)]
        size = sum(int(size) for _, size in static)
        kernel = kernels[entry[1]] = Kernel(entry[1], most, names, size)
        for declaration in split(entry[2]):
            _parse_parameter(kernel, " ".join(declaration.split()))
        _parse_body(kernel, text, entry.end())
    return kernels


def _parse_parameter(kernel, text):
    found = re.fullmatch(
        r"\.param (?:\.align (\d+) )?\.(\w+) (?:\.ptr(?: \.\w+)*?(?: \.align \d+)? )?"
        r"([\w$]+)(?:\[(\d+)\])?",
        text,
    )
    if not found:
        raise PtxError(f"a parameter that is not known: {text}")
    scalar = BITS[found[2]] // 8
    align = int(found[1] or scalar)
    offset = -(-kernel.param_bytes // align) * align
    size = scalar * int(found[4] or 1)
    kernel.params[found[3]] = offset, size
    kernel.param_bytes = offset + size


_PIECE = re.compile(r"\s*(?:([\w$]+):(?!:)|(\{)(?=\s*\.reg)|(\})|((?:[^;{}]|\{[^{}]*\})+);)")


def _parse_body(kernel, text, position):
    line = text.count("\n", 0, position) + 1
    scope = None  # maps the registers of a block in braces to unique names
    while True:
        found = _PIECE.match(text, position)
        if not found:
            raise PtxError(f"line {line}: not understood: {text[position : position + 80]!r}")
        label, opens, closes, statement = found.groups()
        at = line + text.count("\n", position, found.start(found.lastindex))
        line, position = line + text.count("\n", position, found.end()), found.end()
        if label:
            kernel.labels[label] = len(kernel.instructions)
        elif opens:
            if scope is not None:
                raise PtxError(f"line {at}: braces within braces are not known")
            scope = {}
        elif closes and scope is None:
            return
        elif closes:
            scope = None
        else:
            _parse_statement(kernel, " ".join(statement.split()), at, scope)


def _parse_statement(kernel, text, line, scope):
    if text.startswith(".reg "):
        _, ty, names = text.split(None, 2)
        for name in split(names):
            if many := re.fullmatch(r"(%[\w$]+)<(\d+)>", name):
                each = [f"{many[1]}{i}" for i in range(int(many[2]))]
            elif scope is None:
                each = [name]
            else:
                each = [scope.setdefault(name, f"{name}.{len(kernel.registers)}")]
            for register in each:
                kernel.declare(register, BITS[ty[1:]])
        return
    if text.startswith(".shared "):
        return  # parse() has found it
    if text.startswith("."):
        raise PtxError(f"line {line}: a directive that is not known: {text}")
    if scope:
        text = re.sub(r"[%\w$]+", lambda word: scope.get(word[0], word[0]), text)
    found = re.fullmatch(r"(?:@(!?)(%\w+) )?(\S+) ?(.*)", text)
    negated, guard, name, operands = found.groups()
    index = len(kernel.instructions)
    kernel.instructions.append(
        Instruction(name, split(operands), guard, bool(negated), index, line, text)
    )
