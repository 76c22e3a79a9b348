"""Translates instructions into functions of the threads that execute them."""

import re

import numpy as np

from .machine import BITS, DTYPES, PARAMETERS, SHARED, SHARED_STRIDE, UNSIGNED, WARP, PtxError
from .operations import OPERATIONS
from .parsing import split

SPECIAL = {"%tid.x", "%ctaid.x", "%nctaid.x"}


def translate(kernel, instruction):
    """A function of the threads of a launch and of a mask of those that execute it."""
    name, operands = instruction.name, instruction.operands
    if found := re.fullmatch(r"(ld|st)(?:\.(global|param|shared))?(?:\.v([24]))?\.(\w+)", name):
        kind, space, lanes, ty = found.groups()
        make = _load if kind == "ld" else _store
        return make(kernel, instruction, space, int(lanes or 1), ty)
    if name.startswith("mov.") and operands[0].startswith("{"):
        return _unpack(kernel, name.removeprefix("mov."), *operands)
    if name.startswith("mov.") and operands[1].startswith("{"):
        return _pack(kernel, name.removeprefix("mov."), *operands)
    if name == "bar.sync" and operands == ["0"]:
        return lambda threads, which: threads.barrier(which)
    if name == "shfl.sync.bfly.b32" and operands[3:] == ["31", "-1"]:
        return _shuffle(kernel, *operands[:3])
    if name not in OPERATIONS:
        raise PtxError("an instruction that is not known")
    result, types, function = OPERATIONS[name]
    destination, *sources = operands
    write = writer(kernel, destination, result)
    reads = [reader(kernel, o, ty) for o, ty in zip(sources, types, strict=True)]
    return lambda threads, which: write(
        threads, which, function(*[read(threads, which) for read in reads])
    )


def _shuffle(kernel, destination, operand, lanes):
    """The values of other lanes of the warp: those whose numbers differ in the bits of `lanes`."""
    write, read = writer(kernel, destination, "b32"), reader(kernel, operand, "b32")
    offset = _immediate(lanes, "u32")

    def step(threads, which):
        here = np.zeros(threads.n, bool)
        here[which] = True
        if threads.size % WARP or not here.reshape(-1, WARP)[here.reshape(-1, WARP).any(1)].all():
            raise PtxError("not all lanes of a warp take part")
        values = np.zeros(threads.n, UNSIGNED[32])
        values[which] = read(threads, which)
        source = np.arange(threads.n) ^ offset
        if threads.unknown is not None:
            unknown = np.zeros(threads.n, bool)
            unknown[which] = threads.unknown
            threads.unknown = unknown[source][which]
        write(threads, which, values[source][which])

    return step


def reader(kernel, operand, ty):
    """The operand's value in the threads, of the NumPy type of `ty`."""
    dtype, bits = DTYPES[ty], BITS[ty]
    if operand in kernel.registers:
        slot, width = _register(kernel, operand, bits)
        if bits < width:
            narrow = UNSIGNED[bits]
            return lambda threads, which: threads.get(slot, which).astype(narrow).view(dtype)
        if dtype == UNSIGNED[bits]:
            return lambda threads, which: threads.get(slot, which)
        return lambda threads, which: threads.get(slot, which).view(dtype)
    if operand in SPECIAL:
        if bits != 32:
            raise PtxError(f"{operand} is not of {bits} bits")
        return lambda threads, which: threads.special[operand][which].view(dtype)
    if operand in kernel.params:
        constant = np.array([kernel.params[operand][0]], dtype)
    elif operand in kernel.shared:
        constant = np.zeros(1, dtype)
    else:
        constant = np.array([_immediate(operand, ty)], UNSIGNED[bits]).view(dtype)
    return lambda threads, which: constant


def writer(kernel, operand, ty):
    """A function that sets the operand to a value of the NumPy type of `ty`."""
    if operand == "_":
        return lambda threads, which, value: None
    slot, width = _register(kernel, operand, BITS[ty])
    unsigned = UNSIGNED[width]
    if BITS[ty] < width:  # signed values extend their sign
        return lambda threads, which, value: threads.put(slot, which, value.astype(unsigned))
    return lambda threads, which, value: threads.put(slot, which, value.view(unsigned))


def _register(kernel, operand, bits):
    if operand not in kernel.registers:
        raise PtxError(f"{operand} is not a register")
    register = kernel.registers[operand]
    if bits > register.bits or (bits == 1) != (register.bits == 1):
        raise PtxError(f"{operand} of {register.bits} bits as {bits} bits")
    return register


def _immediate(text, ty):
    """The bits of a number in the text."""
    bits = BITS[ty]
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        if ty[0] not in "bf" or bits != 4 * (len(text) - 2):
            raise PtxError(f"{text} is not of {ty}")
        return int(text[2:], 16)
    if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text) or ty[0] == "f":
        raise PtxError(f"an operand that is not known: {text}")
    number = int(text.rstrip("U"), 0)
    if ty == "pred":
        return number != 0
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise PtxError(f"{text} does not fit {ty}")
    return number & ((1 << bits) - 1)


def _pack(kernel, ty, destination, operand):
    """One register from several narrower ones, the lowest first."""
    parts = split(operand[1:-1])
    width = BITS[ty] // len(parts)
    write = writer(kernel, destination, f"b{BITS[ty]}")
    missing = kernel.unwritten_parts.get(destination, ())
    noise = np.random.default_rng()

    def unwritten(threads, which):
        """Other bits in each thread and run: a result that depends on them is wrong."""
        return noise.integers(0, 1 << width, threads.count(which), UNSIGNED[width])

    reads = [
        unwritten if i in missing else reader(kernel, part, f"b{width}")
        for i, part in enumerate(parts)
    ]
    dtype = UNSIGNED[BITS[ty]]

    def step(threads, which):
        pieces = (read(threads, which).astype(dtype) << i * width for i, read in enumerate(reads))
        write(threads, which, sum(pieces, dtype.type(0)))

    return step


def _unpack(kernel, ty, operand, source):
    parts = split(operand[1:-1])
    width = BITS[ty] // len(parts)
    read = reader(kernel, source, f"b{BITS[ty]}")
    writes = [writer(kernel, part, f"b{width}") for part in parts]
    dtype = UNSIGNED[width]

    def step(threads, which):
        value = read(threads, which)
        for i, write in enumerate(writes):
            write(threads, which, (value >> i * width).astype(dtype))

    return step


def _address(kernel, operand, space):
    """The addresses that the threads access."""
    found = re.fullmatch(r"\[ ?([%\w$.]+)(?: ?\+ ?(-?\w+))? ?\]", operand)
    if not found:
        raise PtxError(f"an address that is not known: {operand}")
    base, offset = found[1], int(found[2] or "0", 0) % 2**64
    width = kernel.registers[base].bits if base in kernel.registers else 64
    read = reader(kernel, base, f"u{width}")

    def address(threads, which):
        value = read(threads, which).astype(np.uint64) + offset
        if space == "shared":
            return SHARED + threads.block[which] * SHARED_STRIDE + value
        if space == "param":
            value = value + PARAMETERS
        return value if value.size > 1 else np.broadcast_to(value, threads.count(which))

    return address


def _lanes(operand, lanes):
    parts = split(operand[1:-1]) if operand.startswith("{") else [operand]
    if len(parts) != lanes:
        raise PtxError(f"{operand} are not {lanes} registers")
    return parts


def _load(kernel, instruction, space, lanes, ty):
    registers, source = instruction.operands
    dtype, address = DTYPES[ty], _address(kernel, source, space)
    writes = [writer(kernel, register, ty) for register in _lanes(registers, lanes)]

    def step(threads, which):
        where = address(threads, which)
        threads.check_known()
        values = threads.memory.load(where, dtype, lanes, space, threads.who(which), instruction)
        for i, write in enumerate(writes):
            write(threads, which, values[:, i])

    return step


def _store(kernel, instruction, space, lanes, ty):
    destination, registers = instruction.operands
    if BITS[ty] < 16:
        raise PtxError("a store of single bytes is not known: races are checked by pairs")
    dtype, address = DTYPES[ty], _address(kernel, destination, space)
    reads = [reader(kernel, register, ty) for register in _lanes(registers, lanes)]

    def step(threads, which):
        values = np.empty((threads.count(which), lanes), dtype)
        for i, read in enumerate(reads):
            values[:, i] = read(threads, which)
        where = address(threads, which)
        threads.check_known()
        threads.memory.store(where, values, space, threads.who(which), instruction)

    return step
