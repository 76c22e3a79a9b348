"""Prints which backends are available on this machine, and why the others are not."""

import platform

import torch

from . import __version__, backends
from .backends.cpu import instruction_sets
from .backends.cuda import architectures
from .backends.triton import version


def main() -> None:
    """Print the report."""
    print(f"radam_fused {__version__}")
    print(f"  torch            {torch.__version__}")
    print(f"  Python           {platform.python_version()} on {platform.machine()}")
    print(f"  threads          {torch.get_num_threads()}")
    available = instruction_sets()
    chosen = f"{available[0]} (of {', '.join(available)})" if available else "none"
    print(f"  instruction set  {chosen}")
    print(f"  CUDA             {architectures() or 'not built'}")
    print(f"  triton           {version() or 'none'}")
    print("backends, in the order of backend='auto'")
    for name, backend in backends.BACKENDS.items():
        reason = backend.unavailable()
        print(f"  {name:<8} {'available' if reason is None else 'unavailable: ' + reason}")


if __name__ == "__main__":
    main()
