"""Room that is taken although no sample shows it yet: promised to somebody, on its way here, or just arrived.  From plain data and time.

Without the last part a node looked free between a guest's arrival and the sample that first saw it run, and got a second one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

HELD = 10.0
"""Seconds for which a place stays reserved: longer than it takes from the answer to the arrival of the request to prepare."""
ARRIVAL = 60.0
"""Seconds after which a guest that was announced and is not running yet counts no more."""
SETTLED = 2.5
"""Sampling intervals after which the samples have seen an arrival wholly."""


@dataclass
class Place:
    """``until``: monotonic; ``start``: of a job that has not begun, which is hardly anything to send; ``pid``: once it runs here."""

    until: float
    k: float
    mem: int
    start: bool = False
    pid: int = 0


@dataclass
class Places:
    """``sample_s``: the sampling interval; ``most``, ``most_starts``: moves and starts that may be on their way at once."""

    sample_s: float = 1.0
    most: int = 2
    most_starts: int = 8
    held: dict[str, Place] = field(default_factory=dict)
    arriving: dict[int, Place] = field(default_factory=dict)  # by keeper

    def hold(self, now: float, who: str, k: float, mem: int, *, start: bool = False) -> None:
        """Promise ``who`` room for ``k`` threads and ``mem`` bytes."""
        self.held[who] = Place(now + HELD, k, mem, start)

    def release(self, who: str) -> None:
        """``who`` does not come."""
        self.held.pop(who, None)

    def come(self, now: float, keeper: int, who: str, mem: int) -> None:
        """``who`` has begun to come, to ``keeper``."""
        place = self.held.pop(who, Place(0, 1.0, mem))
        self.arriving[keeper] = Place(now + ARRIVAL, place.k, mem, place.start)

    def tidy(self, now: float, running: dict[int, int], alive: Callable[[int], bool]) -> None:
        """Forget what is over.  ``running``: pids here of guests, by keeper; ``alive``: whether a keeper is there."""
        self.held = {w: p for w, p in self.held.items() if p.until > now}
        for keeper, p in list(self.arriving.items()):
            if not p.pid and (pid := running.get(keeper)):
                p.pid, p.until = pid, now + SETTLED * self.sample_s
            if p.until <= now or not (alive(keeper) or keeper in running):
                del self.arriving[keeper]

    def hidden(self, runnable: Callable[[int], float], *, but: str = "") -> tuple[float, int]:
        """Threads and bytes that samples do not show, those promised to ``but`` left out; ``runnable``: what they show of a guest."""
        places = [p for w, p in self.held.items() if w != but]
        k = sum(p.k for p in places)
        mem = sum(p.mem for p in places)
        for p in self.arriving.values():
            k += max(0.0, p.k - runnable(p.pid)) if p.pid else p.k
            mem += 0 if p.pid else p.mem
        return k, mem

    def full(self, *, start: bool, but: str = "") -> str:
        """Why nobody else can begin to come now; "" when somebody can."""
        places = [p for w, p in self.held.items() if w != but] + [p for p in self.arriving.values() if not p.pid]
        count = sum(1 for p in places if p.start == start)
        if count >= (self.most_starts if start else self.most):
            return f"{count} {'jobs are starting' if start else 'guests are on their way'} there already"
        return ""
