"""The limit loop of limit.cpp, compiled on first use."""

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

LIMIT = "limit: read 4, write 3"
SOURCE = Path(__file__).with_name("limit.cpp")
BUILD = SOURCE.parents[1] / "build" / "bench"


@cache
def _library() -> ctypes.CDLL:
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / "limit.so"
    command = ["g++", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared"]
    subprocess.run([*command, "-fPIC", str(SOURCE), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))  # after torch: it shares torch's OpenMP threads


def limit(elements: int) -> Callable[[], None]:
    """A step that moves the bytes of an optimizer step over so many float32 elements."""
    arrays = [torch.zeros(elements) for _ in range(4)]
    function = _library().read_four_write_three
    addresses = [ctypes.c_void_p(array.data_ptr()) for array in arrays]
    count, threads = ctypes.c_int64(elements), ctypes.c_int(torch.get_num_threads())

    def step() -> None:
        assert arrays  # kept alive with the function
        function(*addresses, count, threads)

    return step
