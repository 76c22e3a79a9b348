"""The hardware, versions and commit of a measurement, and the tools of the machine."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from radam_fused.backends.cpu import instruction_sets
from radam_fused.report import processor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"

_PACKAGES = ("radam_fused", "torch", "torch-optimi", "deepspeed", "numpy", "scikit-learn")
# GB/s, from the data sheets.
_BANDWIDTHS = {"NVIDIA H100 80GB HBM3": 3350, "NVIDIA H200": 4800}


def find_tool(name: str) -> str:
    """The path of a command: on PATH, or in the usual folders of the CUDA toolkit.

    Raises:
        FileNotFoundError: The command is in none of them.
    """
    folders = [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"{name}: not on PATH, nor in {' or '.join(folders)}")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    try:
        done = subprocess.run([find_tool(command[0]), *command[1:]], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def commit() -> str:
    """The commit of the checkout, marked if files other than results differ from it."""
    git = ("git", "-C", str(ROOT))
    head = _output(*git, "rev-parse", "--short=12", "HEAD")
    results = (":!bench/results", ":!docs", ":!README.md")
    changed = _output(*git, "status", "--porcelain", "--", ".", *results)
    return (head or "unknown") + ("-changed" if changed else "")


def machine() -> dict[str, object]:
    """Hardware, versions and commit."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_set": (instruction_sets() or ["none"])[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def where(record: Mapping[str, Any]) -> str:
    """The machine of a record, in one sentence."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}; "
        f"Python {machine['python']}, {versions}; commit {machine['commit']}, {machine['date']}."
    )


def gpu() -> dict[str, object]:
    """The current GPU, its driver and its compilers."""
    properties = torch.cuda.get_device_properties()
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": torch.cuda.get_device_capability(),
        "data_sheet_GB_per_s": _BANDWIDTHS.get(properties.name),
        "driver": driver or None,
        "cuda_of_torch": torch.version.cuda,
        "triton": _version("triton"),
        "nvcc": _output("nvcc", "--version").rpartition("\n")[2] or None,
    }
