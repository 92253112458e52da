"""Turns of work that nobody waits for, by a helper that has precedence over the process for which it works.

The pager must have the CPU at once when the guest misses a page.  With that precedence it also puts a gigabyte where it belongs, half a
second of work: on a machine where all CPUs are taken the guest stood still for 100 ms at a time meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

TURN = 0.001
"""Seconds of work without a break, and of a break; epoll counts in milliseconds."""


class Crowd:
    """Whether more threads of this machine want to run than it has CPUs."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        self._cpus = os.cpu_count() or 1

    def __call__(self) -> bool:
        """As of now; costs 2 us."""
        running = os.pread(self._fd, 128, 0).split()[3].partition(b"/")[0]
        return int(running) > self._cpus


class Turns:
    """``rest`` says before each piece of work how long to let others run.  ``crowded``, ``clock``: for tests."""

    def __init__(self, crowded: Callable[[], bool] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._crowded, self._clock = crowded or Crowd(), clock
        self._since = 0.0

    def rest(self) -> float:
        """Seconds to wait, 0 where the turn is not over or a CPU is free."""
        now = self._clock()
        if now - self._since < TURN:
            return 0.0
        pause = TURN if self._crowded() else 0.0
        self._since = now + pause
        return pause
