"""The price of a node: process-seconds per unit of work, plus a term that rises steeply as memory fills.

``P(m, k, u) = k / r(m, k, u) + n ** (u / M - 1)`` after Amir, Awerbuch, Barak, Borgstrom, Keren, *An opportunity cost approach for job
assignment in a scalable computing cluster*, IEEE TPDS 11(7), 2000, with the count of processes replaced by the delay that they cause,
because an idle fast CPU is better than two slow ones.  ``k``: runnable threads, ``u``: bytes in use, ``M``: bytes of memory, ``n``: nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from mig.model import NodeInfo

THRASH_SLOPE = 10.0
"""Slow-down per fraction of memory over its size: 10 % too much halves the speed."""
THRASH_MAX = 4.0
"""No machine is taken to be slower than this by swapping: beyond it the figure says nothing."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What the price needs to know of a node.  ``k``: runnable threads; ``used``, ``total``: bytes; ``speed``: of one CPU."""

    id: int
    name: str
    speed: float
    cpus: float
    k: float
    used: int
    total: int

    @classmethod
    def of(cls, n: NodeInfo, *, extra_k: float = 0.0, extra_mem: int = 0) -> Self:
        """From a gossiped entry, plus what is known to be on its way there."""
        k = n.load * n.cpus * n.speed + extra_k
        return cls(n.id, n.name, max(n.speed, 0.01), max(n.cpus, 0.01), k, max(0, n.mem_total - n.mem_free) + extra_mem, n.mem_total)

    @property
    def power(self) -> float:
        """Its CPUs in standard CPUs."""
        return self.speed * self.cpus

    def plus(self, k: float, mem: int) -> NodeView:
        """With ``k`` threads and ``mem`` bytes more (or less, where negative)."""
        return NodeView(self.id, self.name, self.speed, self.cpus, max(0.0, self.k + k), max(0, self.used + mem), self.total)

    def fits(self, mem: int) -> bool:
        """Whether ``mem`` bytes more stay inside its memory."""
        return not self.total or self.used + mem <= self.total


def thrash(used: int, total: int) -> float:
    """By how much overcommitted memory slows everything on a node: 1 up to its size, then 1 + 10 x the excess, at most 4."""
    if not total or used <= total:
        return 1.0
    return min(THRASH_MAX, 1.0 + THRASH_SLOPE * (used - total) / total)


def rate_at(m: NodeView, k: float, used: int) -> float:
    """Work per second that one of ``k`` threads gets on ``m`` with ``used`` bytes taken, in standard CPU seconds."""
    share = m.cpus / k if k > 1.0 else m.cpus
    r = m.speed * share if share < 1.0 else m.speed
    return r if used <= m.total or not m.total else r / thrash(used, m.total)


def price_at(m: NodeView, k: float, used: int, nodes: int) -> float:
    """P(m, k, u); a node without work costs nothing, however full its memory."""
    if k <= 0:
        return 0.0
    headroom = float(nodes) ** (used / m.total - 1.0) if m.total else 0.0
    return k / rate_at(m, k, used) + headroom


def rate(m: NodeView) -> float:
    """Work per second that one thread gets there, in standard CPU seconds."""
    return rate_at(m, m.k, m.used)


def price(m: NodeView, nodes: int) -> float:
    """P of ``m`` as it is."""
    return price_at(m, m.k, m.used, nodes)


def added(m: NodeView, k: float, mem: int, nodes: int) -> float:
    """By how much ``k`` threads with ``mem`` bytes raise the price of ``m``."""
    return price_at(m, m.k + k, m.used + mem, nodes) - price_at(m, m.k, m.used, nodes)


def saved(m: NodeView, k: float, mem: int, nodes: int) -> float:
    """By how much it falls when they leave."""
    return price_at(m, m.k, m.used, nodes) - price_at(m, max(0.0, m.k - k), max(0, m.used - mem), nodes)
