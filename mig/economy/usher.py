"""Memory ushering: before a node swaps, the smallest process that ends the shortage goes to where it fits best.

The rule of MOSIX (Barak & Braverman, *Memory ushering in a scalable computing cluster*, Microprocessors and Microsystems 22, 1998): memory
comes before load, because a node that swaps is slower than any queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mig.economy.judge import Candidate
from mig.economy.price import NodeView, added

LONG_S = 5.0
"""Seconds of sending beyond which a process must gain by the move too: while it is sent it takes memory at both ends, which on a slow line
makes a shortage worse."""
TRIED = 4
"""Processes for which a place is sought in one decision."""


def shortage(me: NodeView, reserve: int) -> int:
    """Bytes by which the memory in use passes what the node may give; 0 when it does not."""
    return max(0, me.used + reserve - me.total) if me.total else 0


def order(candidates: Iterable[Candidate], need: int) -> list[Candidate]:
    """The smallest sufficient process first; where none suffices, the largest."""
    return sorted(candidates, key=lambda c: (c.rss < need, c.rss if c.rss >= need else -c.rss, c.pid))


def places(
    me: NodeView, others: Iterable[NodeView], candidates: Iterable[Candidate], reserve: int, nodes: int
) -> Iterator[tuple[Candidate, NodeView]]:
    """Pairs to try, the best first; none while there is no shortage.  A target keeps ``reserve`` bytes free and is the one whose price
    rises least."""
    need = shortage(me, reserve)
    if not need:
        return
    targets = list(others)
    for c in order(candidates, need)[:TRIED]:
        fit = [t for t in targets if t.fits(c.rss + reserve) and (not c.only or t.name in c.only)]
        yield from ((c, t) for t in sorted(fit, key=lambda t: (added(t, c.k, c.rss, nodes), t.id)))
