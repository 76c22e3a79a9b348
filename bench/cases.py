"""The lists of tensor shapes that the optimizers step."""

import math
from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def gpt2(width: int = 768, layers: int = 12, words: int = 50257) -> Shapes:
    """GPT-2, by default with 124M parameters; the output layer is tied to the embedding."""
    block = [
        *((width,),) * 4,  # two layer norms
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    return [(words, width), (1024, width), *block * layers, (width,), (width,)]


def resnet50() -> Shapes:
    """ResNet-50, 25.6M parameters."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, into, size in (
                (width, inputs, 1),
                (width, width, 3),
                (4 * width, width, 1),
            ):
                shapes += [(out, into, size, size), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt2_xl(divisor: int = 1) -> Shapes:
    """GPT-2 XL, 1.6B parameters in 580 tensors; every width divided by `divisor`."""
    return gpt2(1600 // divisor, 48, 50257 // divisor)


def llama3_8b(divisor: int = 1) -> Shapes:
    """Llama 3 8B, 8.0B parameters in 291 tensors; every width divided by `divisor`."""
    width, kv, hidden, words = (n // divisor for n in (4096, 1024, 14336, 128256))
    block = [
        *[(width, width), (kv, width), (kv, width), (width, width)],
        *[(hidden, width), (hidden, width), (width, hidden)],
        *[(width,), (width,)],
    ]
    return [(words, width), *block * 32, (width,), (words, width)]


MANY = "1,000 tensors of 64x16"  # the case that flat buffers are for

CASES: dict[str, Shapes] = {
    "GPT-2 124M": gpt2(),
    "one 25M tensor": [(25_000_000,)],
    MANY: [(64, 16)] * 1000,
    "ResNet-50": resnet50(),
}


def elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def scaled(shapes: Callable[[int], Shapes], most: int) -> Shapes:
    """A model with its widths halved until it has at most so many elements."""
    divisor = 1
    while elements(shapes(divisor)) > most:
        divisor *= 2
    return shapes(divisor)
