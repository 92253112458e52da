"""``mosix``: the classic rule, for comparison and for those who know it.

A node whose local load passes what another one tells of itself by more than the stability factor sends its second busiest process there;
when memory is short the smallest sufficient process goes to the tightest fit.  (Barak, Guday, Wheeler, *The MOSIX Distributed Operating
System*, LNCS 672, 1993; openMosix's sources for the constants.)
"""

from __future__ import annotations

from collections.abc import Iterator

from mig.economy import usher
from mig.economy.judge import Candidate
from mig.economy.policies.base import Policy, Situation, Suggestion
from mig.economy.price import NodeView


class Mosix(Policy):
    """Two loads, the second busiest process, the least loaded node."""

    name = "mosix"
    asks = 0

    def __init__(self) -> None:
        self._loads: dict[int, float] = {}

    def start(self, job: Candidate, s: Situation) -> Iterator[NodeView]:
        yield from sorted([s.me, *s.others], key=lambda n: (not n.fits(job.rss), (n.k + s.knobs.stability) / n.power, n.id))

    def suggest(self, s: Situation) -> Iterator[Suggestion]:
        self._loads = {c.pid: (5 * self._loads.get(c.pid, 0.0) + 3 * c.busy) / 8 for c in s.candidates}
        if need := usher.shortage(s.me, s.knobs.mem_reserve):
            for c in usher.order(s.candidates, need)[:3]:
                fit = [(t.total - t.used - c.rss, t.id, t) for t in s.others if t.fits(c.rss) and (not c.only or t.name in c.only)]
                if fit:
                    yield Suggestion(c, min(fit)[2], "memory")
                    return
            return
        if not s.candidates:
            return
        busiest = sorted(s.candidates, key=lambda c: (-self._loads[c.pid], c.pid))
        c = busiest[1] if len(busiest) > 1 else busiest[0]
        best, to = s.local / s.me.power, None
        for t in s.others:
            load = (t.k + s.knobs.stability) / t.power
            if load < best and t.fits(c.rss) and (not c.only or t.name in c.only):
                best, to = load, t
        if to is not None:
            yield Suggestion(c, to)
