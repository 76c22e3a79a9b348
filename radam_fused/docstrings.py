"""Docstrings that document options from their declarations."""

from collections.abc import Callable, Sequence
from inspect import signature
from textwrap import fill, indent
from typing import TypeVar

from .options import OPTIONS
from .settings import SETTINGS

Documented = TypeVar("Documented")


def documents(only: Sequence[str] = ()) -> Callable[[Documented], Documented]:
    """A decorator that documents options in a docstring.

    It replaces ``{options}`` by those of a group, and ``{settings}`` by those of the optimizer.

    Args:
        only: Names of the options to document; empty for those that the signature names.
    """

    def document(documented: Documented) -> Documented:
        text = documented.__doc__
        if text is not None:  # python -OO
            names = only or signature(documented).parameters  # type: ignore[arg-type]
            for place, declared in (("options", OPTIONS), ("settings", SETTINGS)):
                lines = [
                    indent(fill(f"{o.name}: {o.doc}", 92, subsequent_indent="    "), " " * 8)
                    for o in declared
                    if o.name in names
                ]
                text = text.replace(f"        {{{place}}}", "\n".join(lines))
            documented.__doc__ = text
        return documented

    return document
