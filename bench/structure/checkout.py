"""Checks out another commit and builds its extension in place."""

import os
import subprocess
import sys
from pathlib import Path

from .package import CHECKOUT


def git(*arguments: str, root: Path = CHECKOUT) -> str:
    """The output of a git command.

    Raises:
        SystemExit: git fails; its message is on the screen.
    """
    done = subprocess.run(["git", "-C", str(root), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"git {arguments[0]} failed")
    return done.stdout.strip()


def resolve(commit: str) -> str:
    """The hash of a commit, in the form of the other records."""
    return git("rev-parse", "--verify", "--short=12", f"{commit}^{{commit}}")


def describe(root: Path) -> str:
    """The commit of a checkout, marked if a tracked file differs."""
    if not (root / ".git").exists():
        return "no commit"
    return git("describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=-changed", root=root)


def check_out(commit: str) -> Path:
    """The folder of a commit in build/before; written and built at the first call.

    Args:
        commit: The hash, as resolve() returns it.
    """
    root = CHECKOUT / "build" / "before" / commit
    if list(root.glob("radam_fused/_C.*.so")):
        return root
    root.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["git", "-C", str(CHECKOUT), "archive", commit], stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(root)], input=archive.stdout, check=True)
    print(f"building {commit}", flush=True)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    log = root / "build.log"
    with log.open("w") as file:
        done = subprocess.run(
            build, cwd=root, env={**os.environ, "RADAM_FUSED_CUDA": "0"}, stdout=file, stderr=file
        )
    if done.returncode:
        raise SystemExit(f"{commit} does not build:\n{log.read_text()}")
    return root
