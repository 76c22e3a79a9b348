"""What other processes took of the processor while something was measured."""

import os
import resource
import time
from pathlib import Path


class Others:
    """Starts to count when it is made."""

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
        """Of this process and of the children that have ended."""
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def cores(self) -> float:
        """The cores that others kept busy on average; every child has to have ended."""
        busy = self._busy_seconds() - self._own_seconds() - self._busy
        return max(0.0, busy / (time.monotonic() - self._start))
