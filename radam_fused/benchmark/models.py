"""The shapes of the parameters of well-known models, and of a file of weights."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

Shapes = list[tuple[int, ...]]

_FLOATS = {"F64", "F32", "F16", "BF16"}  # dtypes of safetensors that an optimizer steps


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


def llama3_8b(divisor: int = 1) -> Shapes:
    """Llama 3 8B, 8.0B parameters in 291 tensors; every width divided by `divisor`."""
    width, kv, hidden, words = (n // divisor for n in (4096, 1024, 14336, 128256))
    block = [
        *[(width, width), (kv, width), (kv, width), (width, width)],
        *[(hidden, width), (hidden, width), (width, hidden)],
        *[(width,), (width,)],
    ]
    return [(words, width), *block * 32, (width,), (words, width)]


MODELS: dict[str, Callable[[int], Shapes]] = {
    "gpt2": lambda divisor: gpt2(768 // divisor, words=50257 // divisor),
    "resnet50": lambda divisor: resnet50(),
    "llama3-8b": llama3_8b,
}


def elements(shapes: Shapes) -> int:
    """The number of elements of all tensors."""
    return sum(map(math.prod, shapes))


def shapes_of(model: str) -> Shapes:
    """The shapes of a model.

    Args:
        model: `gpt2`, `resnet50` or `llama3-8b`. For models other than ResNet-50, `/N` after the
            name divides every width by N, a power of 2 up to 64.

    Raises:
        ValueError: There is no such model, or N is none of these numbers.
    """
    name, slash, text = model.partition("/")
    divisors = [str(2**n) for n in range(7)]
    if name not in MODELS or (slash and name == "resnet50"):
        raise ValueError(f"no model is named {model!r}, expected one of {', '.join(MODELS)}")
    if slash and text not in divisors:
        raise ValueError(f"{model!r} divides by {text!r}, expected one of {', '.join(divisors)}")
    return MODELS[name](int(text or 1))


def shapes_in(files: list[Path]) -> Shapes:
    """The shapes of the floating-point tensors in files of safetensors.

    Only the header of each file is read, by the format's specification
    (https://github.com/huggingface/safetensors#format): its length in 8 bytes, then JSON.

    Raises:
        ValueError: A file is not in this format, or no tensor has a floating-point dtype.
        OSError: A file cannot be read.
    """
    shapes: Shapes = []
    for path in files:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= path.stat().st_size - 8:
                raise ValueError(f"{path} is not a safetensors file: its header is incomplete")
            try:
                header = json.loads(file.read(length))
                entries = [value for key, value in header.items() if key != "__metadata__"]
                shapes += [tuple(e["shape"]) for e in entries if e["dtype"] in _FLOATS]
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not a safetensors file: {error!r}") from None
    if not elements(shapes):
        raise ValueError(f"no floating-point tensors in {', '.join(map(str, files))}")
    return shapes
