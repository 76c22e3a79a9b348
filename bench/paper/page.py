"""The tables of docs/evidence.md, which are those of the recorded results."""

import re
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"


def markdown(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """A table in Markdown, its cells as they are."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def put(name: str, table: str, page: Path = PAGE) -> None:
    """Write an experiment's table into its place in the page.

    Args:
        name: Of the experiment.
        table: In Markdown.
        page: The page.

    Raises:
        ValueError: The page has no such place.
    """
    text = page.read_text()
    place = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    text, places = re.subn(
        place, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
    )
    if places != 1:
        raise ValueError(f"{page} has {places} places for {name}, expected one")
    page.write_text(text)
