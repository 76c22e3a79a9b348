"""Measures the processor time of other processes during a measurement."""

import os
import resource
import time
from pathlib import Path


class Others:
    """Counts from its construction on."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy = self._busy_seconds() - self._own_seconds()

    @staticmethod
    def _busy_seconds() -> float:
        fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
        busy = user + nice + system + irq + softirq + steal
        return busy / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own_seconds() -> float:
        """The processor time of this process and of its finished children."""
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def cores(self) -> float:
        """The average number of cores that others used. All children must have finished."""
        busy = self._busy_seconds() - self._own_seconds() - self._busy
        return max(0.0, busy / (time.monotonic() - self._start))
