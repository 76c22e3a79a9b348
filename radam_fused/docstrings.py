"""Docstrings that document options from their declarations."""

from collections.abc import Callable, Sequence
from inspect import signature
from textwrap import fill, indent
from typing import TypeVar

from .options import OPTIONS

Documented = TypeVar("Documented")


def documents(only: Sequence[str] = ()) -> Callable[[Documented], Documented]:
    """A decorator that replaces ``{options}`` in a docstring by the documentation of options.

    Args:
        only: Names of the options to document; empty for those that the signature names.
    """

    def document(documented: Documented) -> Documented:
        text = documented.__doc__
        if text is not None:  # python -OO
            names = only or signature(documented).parameters  # type: ignore[arg-type]
            lines = [
                indent(fill(f"{o.name}: {o.doc}", 92, subsequent_indent="    "), " " * 8)
                for o in OPTIONS
                if o.name in names
            ]
            documented.__doc__ = text.replace("        {options}", "\n".join(lines))
        return documented

    return document
