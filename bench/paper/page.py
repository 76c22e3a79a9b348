"""Writes tables into their places on a page of docs/."""

import re
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"


def markdown(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """A table in Markdown, with unchanged cells."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def put(name: str, table: str, page: Path = PAGE) -> None:
    """Write the table of an experiment into its place on the page.

    Args:
        name: Name of the experiment.
        table: The table in Markdown.
        page: The page.

    Raises:
        ValueError: The page has no place for the experiment, or several.
    """
    text = page.read_text()
    place = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    text, places = re.subn(
        place, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
    )
    if places != 1:
        raise ValueError(f"{page} has {places} places for {name}, expected one")
    page.write_text(text)
