"""Ctrl-C during a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT, getsignal, signal
from threading import current_thread, main_thread
from typing import Any


@contextmanager
def deferred() -> Iterator[None]:
    """A context in which Ctrl-C waits for the end, so that its statements are all executed.

    Python calls handlers of signals in the main thread, between any two instructions.
    """
    handler = getsignal(SIGINT)
    if current_thread() is not main_thread() or not callable(handler):
        yield
        return
    caught: list[tuple[Any, ...]] = []
    signal(SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal(SIGINT, handler)
        if caught:
            handler(*caught[0])
