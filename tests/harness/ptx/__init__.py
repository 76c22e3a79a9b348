"""Execution of the PTX of kernels on a CPU, in NumPy, with every access to memory checked.

Arithmetic is IEEE, to nearest even, one operation at a time; subnormals are kept. An instruction
that is not known is an error.
"""

from .launch import run
from .machine import PtxError
from .memory import Memory
from .program import Program, programs

__all__ = ["Memory", "Program", "PtxError", "programs", "run"]
