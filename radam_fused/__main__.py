"""Prints which backends are available on this machine, and why the others are not."""

import os
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence

import torch

from . import __version__, backends
from .backends.cpu import instruction_sets
from .backends.cuda import architectures
from .backends.triton import version


def _kernels() -> str:
    """The GPUs that this build has CUDA kernels for."""
    built = (architectures() or "").split()
    if not built:
        return "not built"
    machine_code = [f"sm_{name.removesuffix('-real')}" for name in built if "-virtual" not in name]
    has_ptx = any("-real" not in name for name in built)
    return f"built for {', '.join(machine_code)}{', and as PTX for later GPUs' * has_ptx}"


def _report() -> Iterator[str]:
    yield f"radam_fused {__version__}"
    yield f"  torch            {torch.__version__}"
    yield f"  Python           {platform.python_version()} on {platform.machine()}"
    yield f"  threads          {torch.get_num_threads()}"
    available = instruction_sets()
    chosen = f"{available[0]} (of {', '.join(available)})" if available else "none"
    yield f"  instruction set  {chosen}"
    yield f"  CUDA kernels     {_kernels()}"
    yield f"  Triton           {version() or 'not installed'}"
    yield "backends, in the order of backend='auto'"
    for name, backend in backends.BACKENDS.items():
        reason = backend.unavailable()
        yield f"  {name:<8} {'available' if reason is None else 'unavailable: ' + reason}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report.

    Args:
        arguments: The arguments of the command; None for those of the process.
    """
    ArgumentParser("python -m radam_fused", description=__doc__).parse_args(arguments)
    try:
        for line in _report():
            print(line, flush=True)
    except BrokenPipeError:  # by a reader such as head
        # Python flushes stdout once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
