"""One lock for each optimizer: only one thread at a time may step it.

Python can switch threads while a step is planned, and a kernel runs without the GIL.
"""

import os
import threading
from typing import Any
from weakref import WeakSet

_LOCKED: "WeakSet[Any]" = WeakSet()


def lock(optimizer: Any) -> None:
    """Give an optimizer a new lock, as its attribute `_lock`."""
    _LOCKED.add(optimizer)
    optimizer._lock = threading.Lock()


def _unlock_all() -> None:
    for optimizer in _LOCKED:
        optimizer._lock = threading.Lock()


# A process forked during a step would inherit the lock.
os.register_at_fork(after_in_child=_unlock_all)
