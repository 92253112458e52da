"""Nodes whose record we lack or have an old one of, in the order in which they are asked for.

Under heavy loss hundreds are wanted at a time, and each datagram is an occasion to ask: nothing here looks at more than it hands out.
"""

from __future__ import annotations

_MOST = 4096
"""Wanted ids that are remembered."""
_AGAIN = 1.0
"""Seconds until the same is asked for once more, of whoever is there then."""


class Wanted:
    """The ids.  ``add`` and ``got`` may be called with any id at any time."""

    def __init__(self) -> None:
        self._new: dict[int, None] = {}
        self._asked: dict[int, float] = {}
        """Until when it is not asked for again; in the order of these times."""

    def __len__(self) -> int:
        return len(self._new) + len(self._asked)

    def add(self, node: int) -> None:
        """Its record is wanted."""
        if node not in self._asked and len(self) < _MOST:
            self._new[node] = None

    def got(self, node: int) -> None:
        """It is here, or not wanted any more."""
        self._new.pop(node, None)
        self._asked.pop(node, None)

    def ask(self, now: float, most: int) -> list[int]:
        """At most so many to ask for now: what was never asked for first, then what was asked for longest ago."""
        out: list[int] = []
        for waiting in (self._new, self._asked):
            for i in waiting:
                if len(out) == most or (waiting is self._asked and self._asked[i] > now):
                    break
                out.append(i)
        for i in out:
            self.got(i)
            self._asked[i] = now + _AGAIN
        return out
