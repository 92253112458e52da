"""Background tasks of one owner: none is lost to the garbage collector, none fails unheard, all end with their owner; and the beat in
which regular work is done."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable
from typing import Any

log = logging.getLogger(__name__)

_PHASE = random.random()
"""Of a second: several daemons on one machine, as in the lab, do not all wake at once."""


def until_beat(now: float, interval: float) -> float:
    """Seconds from ``now`` to the next multiple of ``interval`` that is not just ahead."""
    rest = interval - now % interval
    return rest if rest > interval / 8 else rest + interval


async def beat(interval: float) -> None:
    """Sleep for about ``interval``, until one of its multiples: parts that look equally often, or half as often, look in one awakening of
    the process.  At rest, awakenings are most of what a daemon costs."""
    await asyncio.sleep(until_beat(asyncio.get_running_loop().time() + _PHASE, interval))


class Tasks:
    """A set of running tasks; ``spawn`` needs a running loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        """Run ``work`` beside the caller; an exception that it raises is logged."""
        t = asyncio.ensure_future(work)
        self._running.add(t)
        t.add_done_callback(self._done)
        return t

    def _done(self, t: asyncio.Task[Any]) -> None:
        self._running.discard(t)
        if not t.cancelled() and t.exception() is not None:
            log.error("a background task failed", exc_info=t.exception())

    def cancel(self) -> None:
        """Cancel all but the task that calls this."""
        for t in list(self._running):
            if t is not asyncio.current_task():
                t.cancel()
