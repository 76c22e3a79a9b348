"""The lists of tensor shapes that are stepped on a GPU."""

from collections.abc import Callable

import torch

from ..cases import MANY, Shapes, elements, gpt2_xl, llama3_8b, resnet50

FLAT = "1B flat"
LLAMA = "Llama 3 8B"
GPT2_XL = "GPT-2 XL"
THOUSAND = MANY
AS_ONE = "one tensor of 1,024,000"

# Bytes of an element over all rivals at once: parameters and moments of each, temporaries.
BYTES_OF_ALL = 194


def _budget() -> int:
    return int(torch.cuda.mem_get_info()[0] * 0.9 / BYTES_OF_ALL)


def _scaled(shapes: Callable[[int], Shapes]) -> Shapes:
    """With every width halved until all rivals fit."""
    divisor = 1
    while elements(shapes(divisor)) > _budget():
        divisor *= 2
    return shapes(divisor)


CASES: dict[str, Callable[[], Shapes]] = {
    FLAT: lambda: [(min(10**9, _budget()),)],
    LLAMA: lambda: _scaled(llama3_8b),
    GPT2_XL: lambda: _scaled(gpt2_xl),
    "ResNet-50": resnet50,
    THOUSAND: lambda: [(64, 16)] * 1000,
    AS_ONE: lambda: [(1_024_000,)],
    "5,000 tensors of 64x16": lambda: [(64, 16)] * 5000,
}
