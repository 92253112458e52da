"""What happened here lately, for ``mosctl events``: a ring of the last events, and queues for those who follow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from omdiscd.event_words import level, line

log = logging.getLogger("omdiscd")

KEEP = 1000
_BEHIND = 200
"""Events that a follower may be behind before it is cut off."""


class Events:
    """An event is a map with ``t`` (wall time), ``kind``, and what belongs to the kind: pid, comm, home, from, to, outcome, reason…"""

    def __init__(self) -> None:
        self._ring: deque[dict[str, Any]] = deque(maxlen=KEEP)
        self._followers: set[asyncio.Queue[dict[str, Any] | None]] = set()

    def add(self, kind: str, **event: Any) -> None:
        """Record an event of this node, now."""
        self.relay({"t": time.time(), "kind": kind, **event})

    def relay(self, event: dict[str, Any]) -> None:
        """Record an event that an agent or a keeper reported; it becomes a line of our log."""
        log.log(level(event), "%s", line(event))
        self._ring.append(event)
        for q in list(self._followers):
            if q.qsize() >= _BEHIND:
                self._followers.discard(q)
                q.put_nowait(None)
            else:
                q.put_nowait(event)

    def since(self, t: float) -> list[dict[str, Any]]:
        """All remembered events with a time after ``t``."""
        return [e for e in self._ring if float(e.get("t", 0)) > t]

    def follow(self) -> asyncio.Queue[dict[str, Any] | None]:
        """A queue of all events from now on; None in it means: you were too slow.  Give it back to :meth:`unfollow`."""
        q: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._followers.add(q)
        return q

    def unfollow(self, q: asyncio.Queue[dict[str, Any] | None]) -> None:
        """End following."""
        self._followers.discard(q)
