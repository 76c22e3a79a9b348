"""The lists of tensor shapes that the optimizers step."""

import itertools
import math
from collections.abc import Callable

from radam_fused.benchmark.models import Shapes, elements, gpt2, llama3_8b, resnet50

__all__ = [
    "CASES",
    "MANY",
    "Shapes",
    "elements",
    "gpt2_xl",
    "llama3_8b",
    "resnet50",
    "scaled",
    "within",
]


def gpt2_xl(divisor: int = 1) -> Shapes:
    """GPT-2 XL, 1.6B parameters in 580 tensors; every width divided by `divisor`."""
    return gpt2(1600 // divisor, 48, 50257 // divisor)


MANY = "1,000 tensors of 64x16"  # the case that flat buffers are for

CASES: dict[str, Shapes] = {
    "GPT-2 124M": gpt2(),
    "one 25M tensor": [(25_000_000,)],
    MANY: [(64, 16)] * 1000,
    "ResNet-50": resnet50(),
}


def scaled(shapes: Callable[[int], Shapes], most: int) -> Shapes:
    """A model with its widths halved until it has at most so many elements."""
    divisor = 1
    while elements(shapes(divisor)) > most:
        divisor *= 2
    return shapes(divisor)


def within(shapes: Shapes, most: int) -> Shapes:
    """The first shapes that have at most so many elements together."""
    totals = itertools.accumulate(map(math.prod, shapes))
    return [shape for shape, total in zip(shapes, totals, strict=True) if total <= most]
