"""The steps of a record."""


def logarithmic(last: int, per_decade: int) -> set[int]:
    """Steps from 1 to `last`, evenly spaced in their logarithm."""
    steps: set[int] = set()
    i = 0
    while (step := round(10 ** (i / per_decade))) <= last:
        steps.add(step)
        i += 1
    return steps
