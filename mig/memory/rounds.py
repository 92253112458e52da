"""How many rounds of pre-copy are worth it.  Pure: told how much was written since the last round, it says what to do.

A round sends what was written during the one before.  Rounds shrink for as long as the link is faster than the process writes; when one
is not at least a fifth smaller, the process has a working set that no further round gets rid of: it is left for after the resume (or, for
a process that must leave nothing behind, for the freeze).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mig.memory.precopy import MAX_ROUNDS

SHRINK = 0.8
"""A round over this part of the one before is not sent: the next ones would not be smaller either."""
SMALL = 1 << 20
"""Bytes that are not worth a round: 9 ms at 1 Gbit/s."""
MAX_SECONDS = 600.0


@dataclass
class Policy:
    """Bounds, and what the rounds came to.

    ``max_seconds`` bounds the beginning of a round: at 1 Gbit/s the default is enough to send 70 GB once.  ``to_the_end``: the process
    leaves a node that goes down, so whatever stays behind travels inside the freeze: rounds go on while they shrink at all.
    """

    max_rounds: int = MAX_ROUNDS
    max_seconds: float = MAX_SECONDS
    to_the_end: bool = False
    sent: list[int] = field(default_factory=list)
    """Bytes of each round that was sent."""
    why: str = ""
    """Why there was no further round."""

    def wants(self, size: int, elapsed: float) -> bool:
        """Whether to send another round, of ``size`` bytes, ``elapsed`` seconds after the first began."""
        if len(self.sent) >= self.max_rounds:
            self.why = f"{len(self.sent)} rounds are the limit"
        elif elapsed >= self.max_seconds:
            self.why = f"{self.max_seconds:g} s are the limit"
        elif self.sent and size < SMALL:
            self.why = "next to nothing was written meanwhile"
        elif self.sent and size > (1.0 if self.to_the_end else SHRINK) * self.sent[-1]:
            self.why = "rounds do not shrink any more"
        else:
            self.sent.append(size)
            return True
        return False


@dataclass
class Bucket:
    """A bound on bytes a second.  Pure: it says how long to wait."""

    bytes_per_s: float
    burst: float = 0.05
    """Seconds' worth that may be sent at once after a pause."""
    _full_at: float = 0.0

    def delay(self, size: int, now: float) -> float:
        """Seconds to wait after ``size`` bytes were sent at ``now``; 0 without a bound."""
        if self.bytes_per_s <= 0:
            return 0.0
        self._full_at = max(self._full_at, now - self.burst) + size / self.bytes_per_s
        return max(0.0, self._full_at - now)
