"""A process with one version of the package. It answers requests, one line of JSON each.

Two versions cannot share a process. Between two requests a worker is blocked, reading.
"""

import faulthandler
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import radam_fused

from .calls import count_calls
from .cases import FOUR, Recipe
from .loop import Loop

LONGEST = 120  # seconds of a request

_loops: dict[Recipe, Loop] = {}


def _loop(recipe: Recipe) -> Loop:
    if recipe not in _loops:
        _loops[recipe] = Loop(recipe)
    return _loops[recipe]


def _answer(what: str, recipe: list[Any] | None = None, event: str | None = None) -> object:
    if what == "package":
        return str(Path(radam_fused.__file__).parent.parent)
    if what == "machine":
        from ..machine import (
            machine,
        )  # an older package can lack it

        return machine()
    if what == "count":
        return count_calls(_loop(Recipe(FOUR)).step)
    assert recipe is not None
    loop = _loop(Recipe(*recipe))
    return None if what == "prepare" else loop.sample(event or "")


def main() -> None:
    """Answer requests until the input ends."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # only answers go to the channel
    for line in sys.stdin:
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        answer = _answer(**json.loads(line))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)
