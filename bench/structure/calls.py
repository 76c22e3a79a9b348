"""Counts the Python calls of the package in one step."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import radam_fused

PACKAGE = Path(radam_fused.__file__).resolve().parent
FOLDERS = (PACKAGE, PACKAGE.parent / "triton_kernels")


def _is_ours(file: str) -> bool:
    path = Path(file).resolve()
    return any(folder in path.parents for folder in FOLDERS)


def count_calls(step: Callable[[], object]) -> tuple[int, int]:
    """Count the calls of Python functions of the package, and the files of these functions.

    Every event "call" of sys.setprofile counts: a function, a comprehension before Python 3.12,
    each time a generator goes on. Calls of C functions do not count.

    Args:
        step: What is run, once.
    """
    called: list[CodeType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.append(frame.f_code)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    files = [code.co_filename for code in called if _is_ours(code.co_filename)]
    return len(files), len(set(files))
