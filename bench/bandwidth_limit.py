"""The bandwidth limit: a step that only reads four arrays and writes three."""

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .machine import ROOT, find_tool

LIMIT = "limit: read 4, write 3"
COPY = "copy, device to device"
BUILD = ROOT / "build" / "bench"

_SOURCE = Path(__file__).with_suffix("")
_COMMANDS = {
    "cpu": ["g++", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"],
    "cuda": ["nvcc", "-O3", "-arch=native", "-Xcompiler", "-fPIC"],
}


@cache
def _library(device: str) -> ctypes.CDLL:
    BUILD.mkdir(parents=True, exist_ok=True)
    source = _SOURCE.with_suffix({"cpu": ".cpp", "cuda": ".cu"}[device])
    target = BUILD / f"bandwidth_limit_{device}.so"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        tool, *options = _COMMANDS[device]
        command = [find_tool(tool), *options, "-shared", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))  # after torch, whose OpenMP threads it uses


def limit(arrays: Sequence[Tensor]) -> Callable[[], None]:
    """A step that moves the bytes of a float32 optimizer step and changes no value.

    Args:
        arrays: Four contiguous float32 arrays of one length, on one device. The second is only
            read.
    """
    numel, device = ctypes.c_int64(arrays[0].numel()), arrays[0].device.type
    function = _library(device).read_four_write_three
    addresses = [ctypes.c_void_p(array.data_ptr()) for array in arrays]

    def on_cpu() -> None:
        assert arrays  # keeps them alive
        function(*addresses, numel, ctypes.c_int(torch.get_num_threads()))

    def on_cuda() -> None:
        assert arrays
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if error := function(*addresses, numel, stream):
            raise RuntimeError(f"CUDA error {error} in the bandwidth limit")

    return on_cuda if device == "cuda" else on_cpu


def new_arrays(elements: int, device: str = "cpu") -> list[Tensor]:
    """Arrays for :func:`limit`."""
    return [torch.zeros(elements, device=device) for _ in range(4)]
