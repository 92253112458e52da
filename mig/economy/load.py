"""MOSIX's two loads: what a node believes of itself, and what it tells others.

The local load rises slowly and falls at once, so that a node does not send a process away because of a short burst; the advertised one
rises at once and falls slowly, so that others do not rush to a node that was idle for an instant.  A process that arrives counts more
than one until the next samples have seen it.
"""

from __future__ import annotations

from dataclasses import dataclass

ARRIVAL = 1.30
"""What a process that just arrived counts: it brings work that the samples do not show yet."""


@dataclass
class TwoLoads:
    """Runnable threads of one node, smoothed both ways."""

    local: float = 0.0
    advertised: float = 0.0

    def sample(self, runnable: float) -> None:
        """Feed the mean number of runnable threads over one sampling interval."""
        self.local = runnable if runnable < self.local else (5 * self.local + 3 * runnable) / 8
        self.advertised = runnable if runnable > self.advertised else (7 * self.advertised + runnable) / 8

    def arrived(self, threads: float = 1.0) -> None:
        """A guest with so many runnable threads has just come in."""
        self.local += ARRIVAL * threads
        self.advertised += ARRIVAL * threads

    def left(self, threads: float = 1.0) -> None:
        """A process with so many runnable threads has just been sent away; the advertised load falls by itself."""
        self.local = max(0.0, self.local - threads)
