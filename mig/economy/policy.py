"""What to move where: the rule, from plain data to proposals with their figures in words.

A process moves if it gains in time what the move costs, and if the pool gains: ``saved > added * (1 + epsilon)``, both being differences of
the price.  A process that has used t seconds of CPU is expected to need t more (Harchol-Balter & Downey, 1997), so its age bounds its gain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mig.economy.price import NodeView, added, price, rate, saved


@dataclass(frozen=True)
class Knobs:
    """The economy's part of :class:`mig.config.Config`; see there."""

    epsilon_home: float = 0.5
    epsilon_placed: float = 1.0
    freeze_s: float = 0.1
    setup_s: float = 0.5
    transfer_cpu: float = 0.1
    bandwidth: float = 125e6
    mem_reserve: int = 0


@dataclass(frozen=True)
class Candidate:
    """A process that could move: CPU seconds used, bytes to send, mean number of runnable threads of its tree."""

    pid: int
    comm: str
    cpu_s: float
    rss: int
    threads: float = 1.0
    placed: bool = False  # its node was chosen at the start
    only: frozenset[str] = field(default_factory=frozenset)  # names of the nodes it may go to; empty: any

    @property
    def k(self) -> float:
        """Threads as they count in the price: a CPU-bound one is a whole one, even where it was caught starting."""
        return float(max(1, round(self.threads)))


@dataclass(frozen=True)
class Proposal:
    """Move ``candidate`` to ``target``; ``gain`` in seconds of the process's time after all costs, ``why`` with the figures in words."""

    candidate: Candidate
    target: NodeView
    gain: float
    saved: float
    added: float
    why: str

    @property
    def worth(self) -> float:
        """Gain per byte sent: what is best done first."""
        return self.gain / max(self.candidate.rss, 1 << 20)


@dataclass(frozen=True)
class Verdict:
    """Whether a move pays, and the sentence that says why or why not."""

    pays: bool
    gain: float
    saved: float
    added: float
    why: str


def judge(me: NodeView, target: NodeView, c: Candidate, knobs: Knobs, nodes: int, *, active: int = 0) -> Verdict:
    """Test one pair; ``nodes`` is the size of the pool, ``active`` the number of transfers that share our line now."""
    k, mem = c.k, c.rss
    # our smoothed load lags behind what we know: the process itself runs here
    here = me if me.k >= k else me.plus(k - me.k, 0)
    there = target.plus(k, mem)
    r_here, r_there = rate(here), rate(there)
    tx = mem / (knobs.bandwidth / (active + 1))
    cost = knobs.freeze_s + knobs.setup_s + 2 * knobs.transfer_cpu * tx
    remaining = max(0.0, c.cpu_s / k - r_here * tx)
    gain = remaining * (1 / r_here - 1 / r_there) - cost
    s, a = saved(here, k, mem, nodes), added(target, k, mem, nodes)
    epsilon = knobs.epsilon_placed if c.placed else knobs.epsilon_home
    figures = f"{r_there:.2f} CPU a thread on {target.name}, {r_here:.2f} here; saves {s:.2f}, costs there {a:.2f}"
    if not target.fits(mem + knobs.mem_reserve):
        return Verdict(False, gain, s, a, f"stays: {target.name} has no room for {mem >> 20} MiB")
    if gain <= 0:
        return Verdict(False, gain, s, a, f"stays: {figures}; it would gain {gain + cost:.2f} s and the move costs {cost:.2f} s")
    if s <= a * (1 + epsilon):
        return Verdict(False, gain, s, a, f"stays: {figures} (times {1 + epsilon:g}: not worth it)")
    return Verdict(True, gain, s, a, f"{figures}; expected to gain {gain:.1f} s after {c.cpu_s:.1f} s of CPU, {mem >> 20} MiB to send")


def propose(me: NodeView, others: Iterable[NodeView], candidates: Iterable[Candidate], knobs: Knobs, *, active: int = 0) -> list[Proposal]:
    """All moves that pay, the best first.  Equal ones are ordered by pid and node id, so that all runs decide alike."""
    targets = list(others)
    nodes = len(targets) + 1
    out = []
    for c in candidates:
        for t in targets:
            if c.only and t.name not in c.only:
                continue
            v = judge(me, t, c, knobs, nodes, active=active)
            if v.pays:
                out.append(Proposal(c, t, v.gain, v.saved, v.added, v.why))
    return sorted(out, key=lambda p: (-p.worth, p.added, p.candidate.pid, p.target.id))


def order_for_start(nodes: Iterable[NodeView], k: float, mem: int) -> list[NodeView]:
    """Nodes by what a new job of ``k`` threads and ``mem`` bytes would cost there, the cheapest first."""
    views = list(nodes)
    return sorted(views, key=lambda n: (not n.fits(mem), added(n, k, mem, len(views)), -n.speed, n.id))


def prices(views: Iterable[NodeView], k: float, mem: int, here: int) -> list[dict[str, float | str | bool]]:
    """For ``mosctl why``: per node its price, what the process adds (here: what it would save by leaving), its CPU rate."""
    rows: list[dict[str, float | str | bool]] = []
    all_views = list(views)
    n = len(all_views)
    for v in all_views:
        present = v.id == here
        after = v if present else v.plus(k, mem)
        margin = saved(v, min(k, v.k), mem, n) if present else added(v, k, mem, n)
        rows.append(
            {"node": v.name, "here": present, "price": round(price(v, n), 3), "marginal": round(margin, 3), "rate": round(rate(after), 3)}
        )
    return rows
