"""The report about an installation: which backends are available, and why the others are not."""

import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from . import __version__, backends
from .backends.cpu import instruction_sets
from .backends.cuda import architectures
from .backends.triton import version


def processor() -> str:
    """The model name of the processor, and its numbers on x86: many machines share a name."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    name = facts.get("model name", platform.machine())
    if "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']}, model {facts['model']})"


def automatic(device: str) -> str:
    """The backend that backend="auto" takes for a float32 parameter on a device."""
    param = torch.zeros(1, device=device)
    backend, _ = backends.select("auto", param, "the parameter", False, False)
    return backend.name


def _kernels() -> str:
    """The GPUs that this build has CUDA kernels for."""
    built = (architectures() or "").split()
    if not built:
        return "not built"
    machine_code = [f"sm_{name.removesuffix('-real')}" for name in built if "-virtual" not in name]
    has_ptx = any("-real" not in name for name in built)
    return f"built for {', '.join(machine_code)}{', and as PTX for later GPUs' * has_ptx}"


def report() -> Iterator[str]:
    """The lines of the report."""
    yield f"radam_fused {__version__}"
    yield f"  torch            {torch.__version__}"
    yield f"  Python           {platform.python_version()} on {platform.machine()}"
    yield f"  processor        {processor()}"
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
    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    for device in devices:
        yield f"auto would take {automatic(device)} for parameters on {device}"
