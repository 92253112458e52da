"""Rumours wait here and ride on whatever is sent next: those that were told least go first, each a limited number of times."""

from __future__ import annotations

from collections import OrderedDict

from mig.pool.message import ALIVE, Rumor


class Rumors:
    """The queue of one node; a newer rumour about the same node takes the place of the older.

    Thousands wait when half of a large pool is lost, and every datagram takes some.  So each number of times told has a queue of its own,
    and nothing is ever sorted: of those that were told equally often the one goes first that has waited longest.
    """

    def __init__(self) -> None:
        self._told: list[OrderedDict[int, Rumor]] = [OrderedDict()]
        """By how often they were told, then by id, those that have waited longest first."""

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._told)

    def add(self, r: Rumor) -> None:
        """Tell it from now on."""
        if r.id not in self._told[0]:
            self.forget(r.id)
        self._told[0][r.id] = r  # one that nobody was told of keeps its turn

    def forget(self, node: int) -> None:
        """What is told about it is over."""
        for queue in self._told:
            if queue.pop(node, None):
                return

    def take_back(self, node: int) -> None:
        """It is alive, as we see: what we were about to tell against it is over."""
        for queue in self._told:
            if (r := queue.get(node)) is not None:
                if r.state != ALIVE:
                    del queue[node]
                return

    def take(self, room: int, limit: int) -> list[Rumor]:
        """At most ``room`` rumours to send now; each is taken ``limit`` times in all."""
        out: list[Rumor] = []
        again: list[tuple[int, Rumor]] = []
        for times, queue in enumerate(self._told, 1):
            if not queue or len(out) >= room:
                continue
            while queue and len(out) < room:
                _, r = queue.popitem(last=False)
                out.append(r)
                if times < limit:
                    again.append((times, r))
            if not queue:
                self._told[times - 1] = OrderedDict()  # one that was emptied would keep its room
        for times, r in again:
            if times == len(self._told):
                self._told.append(OrderedDict())
            self._told[times][r.id] = r
        return out
