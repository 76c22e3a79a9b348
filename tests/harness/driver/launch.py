"""Runs one step through Triton's own launchers and the stand-in for the driver (libcuda.c).

Arguments: the path of the built stand-in, and torch's dtype of step counters or "host". Prints the
launches as JSON.
"""

import ctypes
import json
import struct
import sys
from types import SimpleNamespace

import torch

STREAM = 0x1234
FIELDS = (*("gx", "gy", "gz"), *("bx", "by", "bz"), "shared")


class Launch(ctypes.Structure):
    """Launch of libcuda.c."""

    _fields_ = [
        ("kernel", ctypes.c_char * 32),
        *((field, ctypes.c_uint) for field in FIELDS),
        ("stream", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    ]


def use_triton():
    """Make Triton's launchers active, for a GPU of compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

    triton.runtime.driver.set_active(
        SimpleNamespace(
            utils=CudaUtils(),
            launcher_cls=CudaLauncher,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: STREAM,
        )
    )


def main(library: str, counter: str) -> None:
    """Take one step over two segments of 1 and 3 chunks."""
    driver = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    use_triton()
    from radam_fused.triton_kernels.compiled import CompiledKernels

    from radam_fused.options import OPTION_NAMES
    from radam_fused.state import ROLES

    counts = None if counter == "host" else getattr(torch, counter)
    kernels = CompiledKernels(torch.device("cpu"), [torch.float32] * 3, False, counts)
    assert ctypes.c_int.in_dll(driver, "num_launches").value == 0, "an empty grid is launched"
    upload = kernels.upload(torch.zeros(kernels.workspace_bytes(10_000), dtype=torch.uint8))
    rows = [(1000, 0, 0, 0), (3000, 1024, 1, 0)]
    segments = b"".join(struct.pack(f"{len(ROLES)}q4q", *[0] * len(ROLES), *row) for row in rows)
    table = bytes(8 * (len(OPTION_NAMES) + 5) if counts else 2 * 32)
    kernels.run(upload, segments, table, lambda most: (struct.pack("2i", 0, 1), 3))

    count = ctypes.c_int.in_dll(driver, "num_launches").value
    found = (Launch * 64).in_dll(driver, "launches")[:count]
    tensors = ("segments", "index", "given", "coefficients")
    shown = {name: getattr(upload, name).data_ptr() for name in tensors}
    shown["index_shift"] = upload.index_shift
    shown["launches"] = [
        {
            "kernel": launch.kernel.decode(),
            "grid": [launch.gx, launch.gy, launch.gz],
            "block": [launch.bx, launch.by, launch.bz],
            "shared": launch.shared,
            "stream": launch.stream,
            "arguments": list(launch.arguments),
        }
        for launch in found
    ]
    print(json.dumps(shown))


if __name__ == "__main__":
    main(*sys.argv[1:])
