"""Steps over segments that are larger than any memory; only some blocks run."""

import numpy as np
import torch

from radam_fused import radam_step_
from radam_fused.option_sets import RADAM
from radam_fused.options import COEFFICIENTS as OPTIONS
from radam_fused.rectification import coefficients

from ..helpers import assert_same_bits
from .data import values
from .memory import Memory
from .tables import CHUNK, COEFFICIENTS, SEGMENT, arithmetic


def _roles(dtypes, amsgrad):
    param, grad, moment = dtypes[:3]
    roles = {"param": param, "grad": grad, "exp_avg": moment, "exp_avg_sq": moment}
    return roles | ({"max_exp_avg_sq": moment} if amsgrad else {})


def _segments(sizes, roles, draw):
    """Segments at high addresses, one array after the other, and the number of blocks."""
    segments = np.zeros(len(sizes), SEGMENT)
    first, at = 0, 1 << 32
    for segment, (numel, row) in zip(segments, sizes, strict=True):
        for role, dtype in roles.items():
            size = dtype.itemsize
            segment[role] = at + (draw.randrange(16 // size) * size if draw.random() < 0.2 else 0)
            at += -(-numel * size // 4096) * 4096 + 8192
        segment["numel"], segment["first"], segment["coefficients"] = numel, first, row
        first += -(-numel // CHUNK) * CHUNK
    return segments, first // CHUNK


def edges(sizes):
    """The first and the last block of each segment with blocks."""
    first = 0
    for numel, _ in sizes:
        blocks = -(-numel // CHUNK)
        yield from {first, first + blocks - 1} if blocks else ()
        first += blocks


def assert_same_far(backend, dtypes, amsgrad, sizes, blocks, draw, in_memory=True):
    """Assert that some blocks of a step give the bits of the CPU kernel and access nothing else.

    Args:
        sizes: Pairs of the number of elements and the coefficients index, one per segment.
        blocks: Those that run.
        in_memory: Whether the tables have to lie in memory.
    """
    roles = _roles(dtypes, amsgrad)
    segments, grid = _segments(sizes, roles, draw)
    options = {name: RADAM.defaults[name] for name in OPTIONS} | {"lr": 0.01, "weight_decay": 0.1}
    taken = [5 * row for row in range(max(row for _, row in sizes) + 1)]
    rows = [coefficients(count + 1, **options) for count in taken]
    memory, windows = Memory(), []
    for block in blocks:
        index = int(np.searchsorted(segments["first"], block * CHUNK, side="right")) - 1
        segment = segments[index]
        start = block * CHUNK - int(segment["first"])
        count = min(CHUNK, int(segment["numel"]) - start)
        regions, tensors = [], []
        for role, dtype in roles.items():
            data = values(count, dtype, draw, odd=0.1, positive=role.endswith("_sq"))
            at = int(segment[role]) + start * dtype.itemsize
            content = data.view(torch.uint8).numpy()
            regions.append(memory.allocate(f"{role}, block {block}", at, content, role != "grad"))
            tensors.append(data)
        windows.append((int(segment["coefficients"]), regions, tensors))
    dtype = COEFFICIENTS[arithmetic(dtypes[0])]
    padding = (0,) * (len(dtype.names) - len(rows[0]))
    table = np.array([(*row, *padding) for row in rows], dtype)
    backend.run_step(memory, dtypes, amsgrad, segments, table, grid, blocks, in_memory)
    for block, (row, regions, tensors) in zip(blocks, windows, strict=True):
        maxima = [tensors[4:]] if amsgrad else []
        steps = [torch.tensor(float(taken[row]))]
        radam_step_(*([t] for t in tensors[:4]), steps, *maxima, backend="cpu", **options)
        for role, region, expected in zip(roles, regions, tensors, strict=True):
            found = torch.from_numpy(memory.read(region, np.uint8)).view(expected.dtype)
            assert_same_bits(found, expected, f"{role}, block {block}")
