"""Answers for people and for those who must find a place: which node is best for a process, and what each would cost it."""

from __future__ import annotations

from collections.abc import Iterable

from mig.economy.judge import Candidate, Knobs, Verdict, judge
from mig.economy.price import NodeView, added, price, rate, saved

__all__ = ["Candidate", "Knobs", "Verdict", "judge", "order_for_start", "prices"]


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
