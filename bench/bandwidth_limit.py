"""The bandwidth limit: a step that only reads four arrays and writes three."""

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from radam_fused.benchmark.limit import LIMIT, move

from .machine import ROOT, find_tool

__all__ = ["BUILD", "COPY", "LIMIT", "limit", "new_arrays"]

COPY = "copy, device to device"
BUILD = ROOT / "build" / "bench"

_SOURCE = Path(__file__).with_suffix(".cu")


@cache
def _library() -> ctypes.CDLL:
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / "bandwidth_limit.so"
    if not target.exists() or target.stat().st_mtime < _SOURCE.stat().st_mtime:
        options = ["-O3", "-arch=native", "-Xcompiler", "-fPIC", "-shared"]
        subprocess.run([find_tool("nvcc"), *options, _SOURCE, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def limit(arrays: Sequence[Tensor]) -> Callable[[], None]:
    """A step that moves the bytes of a float32 optimizer step and changes no value.

    Args:
        arrays: Four contiguous float32 arrays of one length, on one device. The second is only
            read.
    """
    if arrays[0].device.type == "cpu":
        return move(arrays)
    numel = ctypes.c_int64(arrays[0].numel())
    function = _library().read_four_write_three
    addresses = [ctypes.c_void_p(array.data_ptr()) for array in arrays]

    def on_cuda() -> None:
        assert arrays  # keeps them alive
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if error := function(*addresses, numel, stream):
            raise RuntimeError(f"CUDA error {error} in the bandwidth limit")

    return on_cuda


def new_arrays(elements: int, device: str = "cpu") -> list[Tensor]:
    """Arrays for `limit`."""
    return [torch.zeros(elements, device=device) for _ in range(4)]
