"""Executes the PTX of kernels on the CPU with NumPy, and checks every access to memory.

Arithmetic is IEEE, to nearest even, one operation at a time; subnormals are kept. An instruction
that is not known is an error.
"""

from .launch import run
from .machine import PtxError
from .memory import Memory
from .program import Program, programs

__all__ = ["Memory", "Program", "PtxError", "programs", "run"]
