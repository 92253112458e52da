"""News that do not wait for the next gossip: a block, a login, a leave, a death, a return.

What comes alone is passed on in the same moment.  What comes in a crowd (a cut network is whole again, and half of the pool is back) is
gathered for a moment and shares datagrams: else each node would send three for every other one, in less than a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from mig.pool.message import Rumor, Sample


class Urgent:
    """What waits to be passed on; the newest rumour about a node takes the place of the older.  ``gather_s``: between two datagrams."""

    def __init__(self, gather_s: float) -> None:
        self._gather_s = gather_s
        self._rumors: dict[int, Rumor] = {}
        self._loads: dict[int, None] = {}
        self._free = -math.inf

    def put(self, rumors: Iterable[Rumor], loads: Iterable[Sample]) -> None:
        """These are news."""
        self._rumors |= {r.id: r for r in rumors}
        self._loads |= {s.id: None for s in loads}

    def due(self) -> float:
        """When something is to be passed on; infinity when nothing waits."""
        return self._free if self._rumors or self._loads else math.inf

    def rumors(self, now: float, room: int) -> list[Rumor]:
        """At most ``room`` to pass on now, those that came first."""
        self._free = now + self._gather_s
        return [self._rumors.pop(i) for i in list(self._rumors)[:room]]

    def loads(self, room: int) -> list[int]:
        """Nodes whose samples are to be passed on with them."""
        chosen = list(self._loads)[: max(room, 0)]
        for i in chosen:
            del self._loads[i]
        return chosen
