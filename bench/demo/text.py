"""Text that every machine has: the source of Python's standard library, as bytes."""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

LIMIT = 8_000_000  # bytes, a quarter of the library


def standard_library() -> tuple[Tensor, Tensor]:
    """Training and validation bytes: every tenth file is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"site-packages", "dist-packages", "test", "tests"} & set(path.parts)
    ]
    parts = [b"".join(path.read_bytes() for path in files[i::10]) for i in range(10)]
    train, held_out = b"".join(parts[1:])[:LIMIT], parts[0]
    return tuple(torch.frombuffer(bytearray(text), dtype=torch.uint8) for text in (train, held_out))


def batch(text: Tensor, step: int, size: int, context: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, the same for every run: (size, context) bytes and those that follow."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - context - 1, (size,), generator=generator).tolist()
    rows = torch.stack([text[at : at + context + 1] for at in starts]).long()
    return rows[:, :-1], rows[:, 1:]
