"""Rumours wait here and ride on whatever is sent next: those that were told least go first, each a limited number of times."""

from __future__ import annotations

from mig.pool.message import Rumor


class Rumors:
    """The queue of one node; a newer rumour about the same node takes the place of the older."""

    def __init__(self) -> None:
        self._told: dict[int, int] = {}
        self._rumors: dict[int, Rumor] = {}

    def __len__(self) -> int:
        return len(self._rumors)

    def add(self, r: Rumor) -> None:
        """Tell it from now on."""
        self._rumors[r.id] = r
        self._told[r.id] = 0

    def forget(self, node: int) -> None:
        """What is told about it is over."""
        self._rumors.pop(node, None)
        self._told.pop(node, None)

    def take(self, room: int, limit: int) -> list[Rumor]:
        """At most ``room`` rumours to send now; each is taken ``limit`` times in all."""
        if not self._rumors or room <= 0:
            return []
        chosen = list(self._rumors) if len(self._rumors) <= room else sorted(self._rumors, key=self._told.__getitem__)[:room]
        out = [self._rumors[i] for i in chosen]
        for i in chosen:
            self._told[i] += 1
            if self._told[i] >= limit:
                self.forget(i)
        return out
