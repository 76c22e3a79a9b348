"""The comparisons, and the ratio that each must reach."""

from typing import NamedTuple

from ..cases import CASES, MANY, Shapes

OURS, ADAMW, RADAM = "FusedRAdam", "torch AdamW fused", "torch RAdam foreach"
AFTER, BEFORE = "after", "before"
STEP, LATE_STEP, FIRST_STEP = "step", "late step", "first step"

LATE = 100  # parameters of the case of late gradients, which bound its pairs
FOUR, TEN_MILLION = "4 tensors of 64x16", "one 10M tensor"
TENSORS: dict[str, Shapes] = {**CASES, FOUR: [(64, 16)] * 4, TEN_MILLION: [(10_000_000,)]}


class Recipe(NamedTuple):
    """An optimizer and its parameters.

    Attributes:
        tensors: A key of TENSORS.
        optimizer: A key of the worker's OPTIMIZERS.
        dtype: The dtype of parameters and gradients, by its name in torch.
        groups: The number of parameter groups, each with its own learning rate.
        late: The number of parameters that have no gradient at first.
    """

    tensors: str
    optimizer: str = OURS
    dtype: str = "float32"
    groups: int = 1
    late: int = 0


class Subject(NamedTuple):
    """One subject of a measurement.

    Attributes:
        side: The worker that runs it, AFTER or BEFORE.
        recipe: What is stepped.
        event: STEP is a steady step; LATE_STEP is one in which a parameter has its first gradient;
            FIRST_STEP is the first one of a new optimizer.
    """

    side: str
    recipe: Recipe
    event: str = STEP


class Comparison(NamedTuple):
    """Two subjects, and the largest allowed ratio of their times; None: no target."""

    what: str
    numerator: Subject
    denominator: Subject
    target: float | None = None


def _both(recipe: Recipe, event: str = STEP) -> tuple[Subject, Subject]:
    return Subject(AFTER, recipe, event), Subject(BEFORE, recipe, event)


def _steady(tensors: str, dtype: str = "float32") -> list[Comparison]:
    target = 1.12 if tensors == MANY else 1.02
    return [Comparison("after / before", *_both(Recipe(tensors, dtype=dtype)), target)]


def _adamw(tensors: str) -> Comparison:
    ours, theirs = Recipe(tensors), Recipe(tensors, ADAMW)
    return Comparison(f"after / {ADAMW}", Subject(AFTER, ours), Subject(AFTER, theirs), 1.00)


def _groups() -> list[Comparison]:
    found = []
    for side in (AFTER, BEFORE):
        one = Subject(side, Recipe(MANY))
        for groups, target in ((100, 1.15), (1000, 2.0)):
            many = Subject(side, Recipe(MANY, groups=groups))
            found.append(
                Comparison(
                    f"{side}: {groups:,} groups / one group",
                    many,
                    one,
                    target if side == AFTER else None,
                )
            )
    adamw = Subject(AFTER, Recipe(MANY, ADAMW, groups=100))
    after, before = _both(Recipe(MANY, groups=100))
    return [
        *found,
        Comparison(f"100 groups: after / {ADAMW}", after, adamw, 0.28),
        Comparison(f"100 groups: before / {ADAMW}", before, adamw),
    ]


def _first() -> list[Comparison]:
    radam = Subject(AFTER, Recipe(MANY, RADAM), FIRST_STEP)
    after, before = _both(Recipe(MANY), FIRST_STEP)
    return [
        Comparison(f"after / {RADAM}", after, radam, 1.0),
        Comparison(f"before / {RADAM}", before, radam),
        Comparison("after / before", after, before),
    ]


def _late() -> list[Comparison]:
    recipe = Recipe(MANY, late=LATE)
    (after, before), (steady, steady_before) = _both(recipe, LATE_STEP), _both(recipe)
    return [
        Comparison("after: such a step / a steady step", after, steady, 3.0),
        Comparison("before: such a step / a steady step", before, steady_before),
        Comparison("such a step: after / before", after, before),
    ]


HALVES = ("bfloat16", "float16")

TIMED: dict[str, list[Comparison]] = {
    **{
        f"steady step, {tensors}": [
            *_steady(tensors),
            *([_adamw(tensors)] if tensors in ("GPT-2 124M", "one 25M tensor") else []),
        ]
        for tensors in CASES
    },
    **{
        f"steady step, {tensors}, {dtype}": _steady(tensors, dtype)
        for one, dtypes in (("one 25M tensor", HALVES), (TEN_MILLION, ("float64",)))
        for dtype in dtypes
        for tensors in (one, MANY)
    },
    f"parameter groups, {MANY}": _groups(),
    f"first step, {MANY}": _first(),
    f"one more first gradient, {MANY}": _late(),
}

# The counts in a steady step of FOUR, and their largest allowed values.
COUNTED = f"Python calls, {FOUR}"
COUNTS = {"calls": 20, "files": 4}


def subjects(comparisons: list[Comparison]) -> list[Subject]:
    """The distinct subjects of a case."""
    both = (s for c in comparisons for s in (c.numerator, c.denominator))
    return list(dict.fromkeys(both))
