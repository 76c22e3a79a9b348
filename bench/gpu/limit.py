"""What the memory of this GPU allows: a copy, and the bytes of a step moved by a plain kernel."""

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from ..limit import BUILD, LIMIT

COPY = "copy, device to device"
SOURCE = Path(__file__).with_name("limit.cu")


@cache
def _library() -> ctypes.CDLL:
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / "limit_cuda.so"
    command = ["nvcc", "-O3", "-arch=native", "-shared", "-Xcompiler", "-fPIC"]
    subprocess.run([*command, str(SOURCE), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def limits(elements: int) -> dict[str, Callable[[], object]]:
    """Steps that only move bytes, over so many float32 elements."""
    arrays = [torch.rand(elements, device="cuda") for _ in range(4)]
    function = _library().read_four_write_three_of
    addresses = [ctypes.c_void_p(array.data_ptr()) for array in arrays]

    def move() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = function(*addresses, ctypes.c_int64(elements), stream)
        assert error == 0, error

    return {LIMIT: move, COPY: lambda: arrays[0].copy_(arrays[1])}
