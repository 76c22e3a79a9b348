"""What a new user does, from nothing: clone, the two commands, the site, the examples, the wheel.

Run it with a Python that has no torch: python3 tests/project/trial.py. It takes about twenty
minutes and writes bench/results/trial.json.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEEL = """
python3 -m venv wheel
wheel/bin/pip install -q torch==2.13.0
RADAM_FUSED_CUDA=0 wheel/bin/pip wheel -q --no-deps -w build/trial .
wheel/bin/pip install -q build/trial/*.whl
"""
STEPS = {  # by name: the folder, and the command that runs in it
    "make demo": (".", ["make", "demo"]),
    "make demo, again": (".", ["make", "demo"]),
    "make test": (".", ["make", "test"]),
    "make examples": (".", ["make", "examples"]),
    "make docs": (".", ["make", "docs"]),
    "a wheel, built and installed": (".", ["bash", "-ec", WHEEL]),
    "the README's report, with an installed wheel": (
        "wheel",
        ["bin/python", "-m", "radam_fused"],
    ),
    "bench, with an installed wheel": ("wheel", ["bin/python", "-m", "radam_fused", "bench"]),
}


def megabytes(folder: Path) -> int:
    done = subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def main() -> None:
    """Run every step in a clone without an active environment; stop at the first failure."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "clone")], check=True)
    clone = folder / "clone"
    git = ["git", "-C", str(clone), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    record = {"commit": commit, "cores": os.cpu_count(), "python": platform.python_version()}
    record["steps"] = {}
    for name, (place, command) in STEPS.items():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        done = subprocess.run(command, cwd=clone / place, env=kept)
        if done.returncode != 0:
            raise SystemExit(f"{name} failed; everything is in {clone}")
        seconds = round(time.monotonic() - start)
        record["steps"][name] = {"seconds": seconds, "megabytes": megabytes(clone)}
        print(f"== {name}: {seconds} s", flush=True)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench" / "results" / "trial.json"
    target.write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
