"""Kernels with one change each, which a test must notice.

Every function yields pairs of a description and the changed text of a kernel.
"""

import re

_SWAPS = {
    "add.rn.": "sub.rn.",
    "sub.rn.": "add.rn.",
    "mul.rn.": "add.rn.",
    "div.rn.": "mul.rn.",
    "setp.gt.f": "setp.lt.f",
    "setp.nan.f": "setp.num.f",
    "add.s64": "sub.s64",
    "add.s32": "sub.s32",
    "setp.ne.s64": "setp.eq.s64",
    "setp.le.s64": "setp.gt.s64",
    "setp.gt.s64": "setp.ge.s64",
    "setp.ge.s32": "setp.gt.s32",
    "setp.lt.s32": "setp.le.s32",
    "setp.eq.s32": "setp.ne.s32",
    "min.s64": "max.s64",
    "shl.b64": "shr.u64",
}

_GUARD = r"\s*(?:@!?%p\d+ )?"


def _changes(text, change):
    """Yield the text with one line changed, for each line that `change` changes."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        changed = change(line)
        if changed is not None:
            what = f"line {number + 1}: {line.strip()} -> {changed.strip() or 'nothing'}"
            yield what, "\n".join([*lines[:number], changed, *lines[number + 1 :]])


def _idle(text):
    """The registers that affect no result.

    Addresses of which only the alignment is used, which are sums of multiples of 16; and what a
    division by a power of two adds to numbers below zero.
    """
    found = set()
    for pair in re.findall(r"or\.b64\s+%\w+, (%\w+), (%\w+);", text):
        found |= {name for name in pair if len(re.findall(rf"{name}\b", text)) == 2}
    for name in re.findall(r"shl\.b64\s+(%\w+)", text):
        made = re.findall(rf"(%\w+), .*{name}\b", text)
        found |= {name} if set(made) <= found else set()
    return found | set(re.findall(r"shr\.u\d+\s+(%\w+), %\w+, (?:30|63);", text))


def swapped(text, sums=True):
    """Replace one instruction by another.

    Without sums, no addition or subtraction of float64 numbers is replaced, nor the place where a
    number is split. A sum of two numbers that keeps its rounding error (Dekker) stays the same if
    one of its parts changes its sign, and so does a product of numbers that are split elsewhere:
    the error makes up for it.
    """
    idle = _idle(text)

    def change(line):
        for name, other in _SWAPS.items():
            if not line.strip().startswith(name) or "0d0000000000000000" in line:
                continue
            if not sums and re.match(r"(add|sub)\.rn\.f64|mul.*0d41A0000002000000", line.strip()):
                continue
            if not idle & set(re.findall(r"%\w+", line)):
                return line.replace(name, other, 1)
        return None

    return _changes(text, change)


def without_a_store(text):
    return _changes(text, lambda line: "" if re.match(_GUARD + r"st\.", line) else None)


def at_other_offsets(text):
    """Move an access by 16 bytes."""

    def change(line):
        if not re.match(_GUARD + r"(?:ld|st)\.(?!param)", line):
            return None
        moved = re.sub(r"\[ ?(%\w+)(?: ?\+ ?(-?\d+))? ?\]", _moved, line)
        return None if moved == line else moved

    return _changes(text, change)


def _moved(address):
    return f"[{address[1]}+{int(address[2] or 0) + 16}]"


def contracted(text):
    """Contract a product and a sum to a fused multiply-add."""
    products = {}

    def change(line):
        if found := re.match(r"\s*mul\.rn\.f32\s+(%\w+), (\S+), (\S+);", line):
            products[found[1]] = f"{found[2]}, {found[3]}"
        elif found := re.match(r"\s*add\.rn\.f32\s+(%\w+), (%\w+), (%\w+);", line):
            for product, other in ((found[3], found[2]), (found[2], found[3])):
                if product in products:
                    return f"fma.rn.f32 {found[1]}, {products[product]}, {other};"
        return None

    return _changes(text, change)


def without_a_barrier(text):
    return _changes(text, lambda line: "" if re.match(r"\s*bar\.", line) else None)
