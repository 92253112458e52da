"""MOSIX's two loads: what a node believes of itself, and what it tells others.

The local load rises slowly, ``(5 old + 3 new) / 8``, and falls at once, so that a node does not send a process away because of a short
burst; the advertised one rises at once and falls slowly, ``(7 old + new) / 8``, so that others do not rush to a node that was idle for an
instant.  A process that arrives counts more than one until the next samples have seen it.  (Barak, Shiloh, *A distributed load-balancing
policy for a multicomputer*, Software: Practice and Experience 15(9), 1985; the constants are those of MOSIX for Linux.)
"""

from __future__ import annotations

from dataclasses import dataclass

ARRIVAL = 1.30
"""MOSIX's stability factor: what a process that just arrived counts.  It brings work that the samples do not show yet."""


@dataclass
class TwoLoads:
    """Runnable threads of one node, smoothed both ways.

    ``decay`` scales the memory of both: 1 is MOSIX's, 0 believes every sample at once, 2 weighs the past twice as much.
    """

    local: float = 0.0
    advertised: float = 0.0
    stability: float = ARRIVAL
    decay: float = 1.0

    def sample(self, runnable: float) -> None:
        """Feed the mean number of runnable threads over one sampling interval."""
        d = self.decay
        self.local = runnable if runnable < self.local else (5 * d * self.local + 3 * runnable) / (5 * d + 3)
        self.advertised = runnable if runnable > self.advertised else (7 * d * self.advertised + runnable) / (7 * d + 1)

    def arrived(self, threads: float = 1.0) -> None:
        """A guest with so many runnable threads has just come in."""
        self.local += self.stability * threads
        self.advertised += self.stability * threads

    def left(self, threads: float = 1.0) -> None:
        """A process with so many runnable threads has just been sent away; the advertised load falls by itself."""
        self.local = max(0.0, self.local - threads)
