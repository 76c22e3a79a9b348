"""What a result was measured on."""

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from radam_fused.backends.cpu import instruction_sets


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the checkout, marked where there are changes besides what is written here."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", ".", ":!bench/results", ":!docs/evidence.md"],
        capture_output=True,
        text=True,
    )
    return head.stdout.strip() + ("-changed" if changed.stdout.strip() else "")


def machine() -> dict[str, object]:
    """Hardware, versions and commit."""
    packages = ("radam_fused", "torch", "torch-optimi", "deepspeed", "numpy", "scikit-learn")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "processor": _processor(),
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_sets()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }
