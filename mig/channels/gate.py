"""On the host: answers home's question WANT when the guest waits to read; when it is long not seen waiting, something else is tried."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable

from mig.channels.demand import Demand, Matches, waiting

FIRST_LOOK, LAST_LOOK = 0.002, 0.05
"""Seconds between looks at the guest while a question is open: twice as long each time.  Shorter finds the guest waiting sooner (its
delay per keystroke or line when it was busy), and costs a walk through /proc each time."""


class Gate:
    """Looks at the guest from the moment home asks until a thread waits for more than it was already given.

    ``pids``: the guest's processes, as this node sees them.  ``empty``: whether all that was passed on has been read.  ``grant(n)``: called
    once for each question, unless ``impatient()`` is, after :attr:`patience` seconds in which nobody waited and all was read.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        matches: Matches,
        empty: Callable[[], bool],
        grant: Callable[[int], None],
        patience: float,
        impatient: Callable[[], None],
    ) -> None:
        self._pids, self._matches, self._empty, self._grant = pids, matches, empty, grant
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._granted: Demand | None = None
        self._served: Demand | None = None
        self._asked_at = 0.0
        self.patience, self._impatient = patience, impatient

    def ask(self) -> None:
        """Home has something."""
        self.forget()
        self._asked_at = self._loop.time()
        # Not at once: we are called for a frame of a connection, on which more frames may wait.
        self._timer = self._loop.call_later(0, self._look, FIRST_LOOK)

    def delivered(self) -> None:
        """The bytes of the last grant were written.

        A terminal passes them on a moment later; until then the thread still seems to wait.
        """
        self._served, self._granted = self._granted, None

    def forget(self) -> None:
        """The question is void."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, pause: float) -> None:
        self._timer = None
        empty = self._empty()
        demand = self._demand() if empty else None
        if demand is None:
            if empty and self._loop.time() - self._asked_at >= self.patience:
                self._impatient()
                return
            self._timer = self._loop.call_later(pause, self._look, min(pause * 2, LAST_LOOK))
            return
        self._granted = demand
        self._grant(demand.count)

    def _demand(self) -> Demand | None:
        try:
            pids = list(self._pids())
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
                raise
            return None  # the guest, or its cgroup, has just gone
        for demand in waiting(pids, self._matches):
            served = self._served
            if demand.tid == 0 or served is None or (demand.tid, demand.sleeps) != (served.tid, served.sleeps):
                return demand
        return None
