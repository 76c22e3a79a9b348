"""Shared by the interpreter: the error, the types and the address windows."""

import numpy as np

WARP = 32
WORD = 32  # bytes of the widest access

# Address windows of a launch, beyond all host addresses.
PARAMETERS = 1 << 60
SHARED = 1 << 61
SHARED_STRIDE = 1 << 40  # between blocks; larger than any offset


class PtxError(Exception):
    """A fault in a program or in its accesses."""


UNSIGNED = {1: np.dtype(bool)} | {n: np.dtype(f"uint{n}") for n in (8, 16, 32, 64)}

# The NumPy type of each PTX type. NumPy lacks bfloat16, so its bits are used.
DTYPES = {"pred": UNSIGNED[1], "bf16": UNSIGNED[16]}
DTYPES |= {f"f{n}": np.dtype(f"float{n}") for n in (16, 32, 64)}
for _bits in (8, 16, 32, 64):
    DTYPES |= {f"b{_bits}": UNSIGNED[_bits], f"u{_bits}": UNSIGNED[_bits]}
    DTYPES[f"s{_bits}"] = np.dtype(f"int{_bits}")

BITS = {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} | {"pred": 1}
