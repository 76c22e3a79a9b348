"""What every part of the interpreter shares: the error, the types and the address windows."""

import numpy as np

WARP = 32
WORD = 32  # bytes of the widest access

# Addresses of a launch's own memory, which no address of the host reaches.
PARAMETERS = 1 << 60
SHARED = 1 << 61
SHARED_STRIDE = 1 << 40  # between blocks: further than an offset reaches


class PtxError(Exception):
    """A fault of a program, or of what the program does."""


UNSIGNED = {1: np.dtype(bool)} | {n: np.dtype(f"uint{n}") for n in (8, 16, 32, 64)}

# The NumPy type of each PTX type. NumPy has no bfloat16: its bits stand for it.
DTYPES = {"pred": UNSIGNED[1], "bf16": UNSIGNED[16]}
DTYPES |= {f"f{n}": np.dtype(f"float{n}") for n in (16, 32, 64)}
for _bits in (8, 16, 32, 64):
    DTYPES |= {f"b{_bits}": UNSIGNED[_bits], f"u{_bits}": UNSIGNED[_bits]}
    DTYPES[f"s{_bits}"] = np.dtype(f"int{_bits}")

BITS = {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} | {"pred": 1}
