"""``roundrobin``: each job starts on the next node, whatever is there, as PVM's daemons did.  Nothing moves afterwards."""

from __future__ import annotations

from collections.abc import Iterator

from mig.economy.judge import Candidate
from mig.economy.policies.base import Policy, Situation
from mig.economy.price import NodeView


class RoundRobin(Policy):
    """The next node by id, in a circle."""

    name = "roundrobin"
    asks = 1

    def __init__(self) -> None:
        self._last = -1

    def start(self, job: Candidate, s: Situation) -> Iterator[NodeView]:
        nodes = sorted([s.me, *s.others], key=lambda n: n.id)
        first = next((i for i, n in enumerate(nodes) if n.id > self._last), 0)
        for n in nodes[first:] + nodes[:first]:
            self._last = n.id
            yield n
