"""``epvm``: opportunity cost as published: E-PVM places jobs, E-MOSIX moves them (Amir et al., IEEE TPDS 11(7), 2000).

``P = n ** (l / L) + n ** (u / M)`` with the load ``l`` in threads per standard CPU, ``L`` the smallest power of two that no load has passed
yet, and memory as in :mod:`mig.economy.price`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mig.economy.judge import Candidate
from mig.economy.policies.base import Policy, Situation, Suggestion
from mig.economy.price import NodeView

_STEEPEST = 60.0


class EPvm(Policy):
    """A job starts where the price rises least, and the pair that lowers the sum of prices most moves."""

    name = "epvm"
    asks = 1

    def __init__(self) -> None:
        self.largest = 1.0

    def start(self, job: Candidate, s: Situation) -> Iterator[NodeView]:
        nodes = [s.me, *s.others]
        self._grow(nodes)
        yield from sorted(nodes, key=lambda n: (self.cost(job, n, s), n.id))

    def cost(self, job: Candidate, node: NodeView, s: Situation) -> float:
        return self._price(node, node.k + job.k, node.used + job.rss, s.nodes) - self._price(node, node.k, node.used, s.nodes)

    def suggest(self, s: Situation) -> Iterator[Suggestion]:
        self._grow([s.me, *s.others])
        now = self._price(s.me, s.me.k, s.me.used, s.nodes)
        then = [(t, self._price(t, t.k, t.used, s.nodes)) for t in s.others]
        pairs: list[tuple[float, int, int, Suggestion]] = []
        for c in s.candidates:
            saves = now - self._price(s.me, max(0.0, s.me.k - c.k), max(0, s.me.used - c.rss), s.nodes)
            for t, before in then:
                falls = saves - (self._price(t, t.k + c.k, t.used + c.rss, s.nodes) - before)
                if falls > 1e-12 and (not c.only or t.name in c.only):
                    pairs.append((-falls, c.pid, t.id, Suggestion(c, t)))
        if pairs:
            yield min(pairs, key=lambda p: p[:3])[3]

    def _grow(self, nodes: list[NodeView]) -> None:
        highest = max(n.k / n.power for n in nodes)
        while self.largest < highest:
            self.largest *= 2.0

    def _price(self, n: NodeView, k: float, used: int, nodes: int) -> float:
        memory = nodes ** min(_STEEPEST, used / n.total) if n.total else 0.0
        return float(nodes ** min(_STEEPEST, k / n.power / self.largest) + memory)
