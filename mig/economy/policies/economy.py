"""``economy``, the default: opportunity cost by delay, remaining life by age, cost of the move, memory first."""

from __future__ import annotations

from collections.abc import Iterator

from mig.economy import usher
from mig.economy.judge import Candidate, judge
from mig.economy.policies.base import Policy, Situation, Suggestion, cheapest
from mig.economy.price import NodeView, added, saved


class Economy(Policy):
    """Start where the price rises least; move what the pool gains most by for each second that the move takes."""

    name = "economy"
    priced = True

    def start(self, job: Candidate, s: Situation) -> Iterator[NodeView]:
        yield from cheapest(job, [s.me, *s.others], s.nodes)

    def cost(self, job: Candidate, node: NodeView, s: Situation) -> float:
        return added(node, job.k, job.rss, s.nodes) + (0.0 if node.fits(job.rss) else 1e9)

    def suggest(self, s: Situation) -> Iterator[Suggestion]:
        if usher.shortage(s.me, s.knobs.mem_reserve):
            for c, t in usher.places(s.me, s.others, s.candidates, s.knobs.mem_reserve, s.nodes):
                v = judge(s.me, t, c, s.knobs, s.nodes, active=s.active, lasted=s.lasts(t))
                if v.send_s < usher.LONG_S or v.gain > 0:
                    yield Suggestion(c, t, "memory", v)
            return
        yield from propose(s)


def propose(s: Situation) -> list[Suggestion]:
    """All moves that pay by what is known here, the most gain for each second of the move first; equal ones by pid and node id, so that
    all runs decide alike.

    By gain for each byte, which is as good while the start of a move costs nothing, small processes always went before large ones: a
    renderer with several threads stayed behind for ever.  So they would if the rest that is expected of a process of any age
    (:data:`mig.economy.judge.NEW_S`) counted in the order.
    """
    found: list[tuple[float, float, int, int, Suggestion]] = []
    for k in {c.k for c in s.candidates}:
        group = [c for c in s.candidates if c.k == k]
        # a bound for the whole group leaves out most targets without a look at its members
        epsilon = min(s.knobs.epsilon_placed if c.placed else s.knobs.epsilon_home for c in group)
        here = s.me if s.me.k >= k else s.me.plus(k - s.me.k, 0)
        most, least = saved(here, k, max(c.rss for c in group), s.nodes), min(c.rss for c in group)
        drawn = any(c.drag for c in group)
        for t in s.others:
            if not drawn and most <= added(t, k, least, s.nodes) * (1 + epsilon):
                continue
            for c in group:
                if c.only and t.name not in c.only:
                    continue
                v = judge(s.me, t, c, s.knobs, s.nodes, active=s.active, lasted=s.lasts(t))
                if v.pays:
                    kind = "home" if c.drag and t.name == c.home else "load"
                    found.append((-v.sure / (v.cost + v.send_s), v.added, c.pid, t.id, Suggestion(c, t, kind, v)))
    return [f[-1] for f in sorted(found, key=lambda f: f[:4])]
