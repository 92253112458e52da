"""For how long each other node has been the better place: what a move can gain is bounded by how long the difference will last.

A process that will run for an hour gains nothing for an hour where the other node is idle for an instant.  How long an imbalance lasts is
not known; one that has lasted T seconds is expected to last T more, as with the lives of processes, but not less than :data:`HORIZON_S`.
"""

from __future__ import annotations

from collections.abc import Iterable

from mig.economy.price import NodeView, added, saved

HORIZON_S = 8.0
"""Seconds for which any difference is believed to last: as long as what nodes tell of their load remembers, ``(7 old + new) / 8`` a second
(:mod:`mig.economy.load`).  A shorter one cannot be told from an instant's."""


def lasts(lasted_s: float) -> float:
    """Seconds for which a difference that has lasted ``lasted_s`` seconds is expected to go on."""
    return max(HORIZON_S, lasted_s)


class Gaps:
    """Since when each other node has been better for one thread more than this one."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def look(self, now: float, me: NodeView, others: Iterable[NodeView]) -> dict[int, float]:
        """As :meth:`lasted`, by what is known now: before a decision; ``now``: seconds of any clock that goes on."""
        views = list(others)
        here = saved(me, 1.0, 0, len(views) + 1) if me.k > 0 else 0.0
        better = {v.id for v in views if added(v, 1.0, 0, len(views) + 1) < here}
        self._since = {i: self._since.get(i, now) for i in better}
        return self.lasted(now, (v.id for v in views))

    def forget(self) -> None:
        """Nobody has looked for a while: what has been better since then is not known."""
        self._since.clear()

    def lasted(self, now: float, others: Iterable[int]) -> dict[int, float]:
        """Seconds for which each of ``others`` had been better when we looked last, 0 where it was not; changes nothing."""
        return {i: now - self._since.get(i, now) for i in others}
