"""Rumours wait here and ride on whatever is sent next: those that were told least go first, each a limited number of times."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from mig.pool.message import Rumor

_Place = tuple[int, int, int]
"""How often it was told, when it came, and whom it is about."""


class Rumors:
    """The queue of one node; a newer rumour about the same node takes the place of the older.

    Thousands wait when half of a large pool is lost, and every datagram takes some: what they are taken from is a heap in which places
    that hold no more are left until they come up.
    """

    def __init__(self) -> None:
        self._rumors: dict[int, Rumor] = {}
        self._places: dict[int, _Place] = {}
        self._heap: list[_Place] = []
        self._came = 0

    def __len__(self) -> int:
        return len(self._rumors)

    def add(self, r: Rumor) -> None:
        """Tell it from now on."""
        old = self._places.get(r.id)
        if old is None:
            self._came += 1
        self._rumors[r.id] = r
        self._place(r.id, 0, old[1] if old else self._came)

    def forget(self, node: int) -> None:
        """What is told about it is over."""
        self._rumors.pop(node, None)
        self._places.pop(node, None)

    def take(self, room: int, limit: int) -> list[Rumor]:
        """At most ``room`` rumours to send now; each is taken ``limit`` times in all."""
        if not self._rumors or room <= 0:
            return []
        chosen = list(self._rumors) if len(self._rumors) <= room else self._least_told(room)
        out = [self._rumors[i] for i in chosen]
        for i in chosen:
            told, came, _ = self._places[i]
            if told + 1 >= limit:
                self.forget(i)
            else:
                self._place(i, told + 1, came)
        return out

    def _least_told(self, room: int) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < room:
            place = heappop(self._heap)
            if self._places.get(place[2]) is place:
                chosen.append(place[2])
        return chosen

    def _place(self, node: int, told: int, came: int) -> None:
        place = self._places[node] = told, came, node
        heappush(self._heap, place)
        if len(self._heap) > 4 * len(self._places) + 64:
            self._heap = list(self._places.values())
            heapify(self._heap)
