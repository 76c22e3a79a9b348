"""Measures a case: its subjects run alternately, each in the worker of its side."""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .cases import AFTER, BEFORE, COUNTED, COUNTS, TIMED, Subject, subjects
from .judge import judge, judge_count
from .side import Side

Roots = dict[str, Path]

BATCHES = 5


def _start(roots: Roots, stack: ExitStack) -> dict[str, Side]:
    sides = {name: stack.enter_context(Side(root)) for name, root in roots.items()}
    for side in sides.values():
        side.check()
    return sides


def _sample(
    sides: dict[str, Side], timed: list[Subject], pairs: int, chance: random.Random
) -> dict[Subject, list[float]]:
    """Time every subject once per round, in random order."""
    seconds: dict[Subject, list[float]] = {subject: [] for subject in timed}
    for subject in timed:
        sides[subject.side].send("prepare", subject)
    for subject in timed:
        sides[subject.side].receive()
    for _ in range(pairs):
        for subject in chance.sample(timed, len(timed)):
            seconds[subject].append(sides[subject.side].ask("sample", subject))
    return seconds


def time_case(case: str, roots: Roots, pairs: int) -> list[dict[str, Any]]:
    """The comparisons of a case, in batches of pairs.

    Each batch has its own workers and copies of the package, and memory that no case has used.
    """
    chance, timed = random.Random(0), subjects(TIMED[case])
    seconds: dict[Subject, list[list[float]]] = {subject: [] for subject in timed}
    for batch in tqdm(range(BATCHES), desc=case, leave=False):
        size = (pairs + batch) // BATCHES  # the sum of the sizes is `pairs`
        with ExitStack() as stack:
            found = _sample(_start(roots, stack), timed, size, chance)
        for subject in timed:
            seconds[subject].append(found[subject])
    return [
        {"case": case, "compared": c.what}
        | judge(seconds[c.numerator], seconds[c.denominator], c.target)
        for c in TIMED[case]
    ]


def count_case(roots: Roots) -> list[dict[str, Any]]:
    """The numbers of calls and files in a steady step of each side."""
    with ExitStack() as stack:
        sides = _start(roots, stack)
        found = {
            name: dict(zip(COUNTS, sides[name].ask("count"), strict=True))
            for name in (AFTER, BEFORE)
        }
    return [
        {"case": COUNTED, "compared": f"{side}: {what}"}
        | judge_count(count, COUNTS[what] if side == AFTER else None)
        for side, counts in found.items()
        for what, count in counts.items()
    ]


def machine_of(root: Path) -> dict[str, Any]:
    """machine() with the package of a side."""
    with Side(root) as side:
        side.check()
        return dict(side.ask("machine"))
