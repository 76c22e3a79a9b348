"""Warnings at the line of the user's code."""

import sys
import warnings


def _is_internal(module: str) -> bool:
    return module.partition(".")[0] in (__package__, "torch")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, at the line of the first caller outside of torch and this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and _is_internal(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
