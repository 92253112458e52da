"""What moves really cost here, learnt from those that ended: the line, the pause, the start of the helpers and their CPU time, the bytes
for each byte of memory.

Each is an exponential mean with weight 1/4 for the newest, begun with what the configuration guesses and kept within sane bounds, so that
one odd move does not keep everything at home.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mig.economy.judge import Knobs

_WEIGHT = 0.25
_LARGE = 32 << 20
"""Bytes: only moves of at least this much tell something of the line, only smaller ones of the start of the helpers."""


@dataclass
class Measured:
    """``knobs`` is what to reckon with now; ``dirty``: bytes sent for each byte of memory."""

    guess: Knobs
    freeze_s: float = 0.0
    setup_s: float = 0.0
    move_cpu_s: float = 0.0
    bandwidth: float = 0.0
    dirty: float = 1.0
    moves: int = 0

    def __post_init__(self) -> None:
        self.freeze_s, self.setup_s, self.bandwidth = self.guess.freeze_s, self.guess.setup_s, self.guess.bandwidth
        self.move_cpu_s = self.guess.move_cpu_s

    @property
    def knobs(self) -> Knobs:
        """The configuration's knobs with the measured costs in their place."""
        return replace(
            self.guess, freeze_s=self.freeze_s, setup_s=self.setup_s, move_cpu_s=self.move_cpu_s, bandwidth=self.bandwidth
        )  # fmt: skip

    def learn(self, *, pause_s: float, total_s: float, sent: int, rss: int, cpu_s: float = 0.0) -> None:
        """A move has ended: its pause and whole duration in seconds, bytes sent, bytes of memory, the helpers' CPU seconds (0: unknown)."""
        if not 0 < total_s < 3600 or pause_s < 0 or sent < 0:
            return
        self.moves += 1
        self.freeze_s = _mean(self.freeze_s, pause_s, 0.02, 5.0)
        if cpu_s > 0:
            self.move_cpu_s = _mean(self.move_cpu_s, cpu_s, 0.05, 20.0)
        if sent < _LARGE:
            self.setup_s = _mean(self.setup_s, total_s - pause_s, 0.05, 10.0)
            return
        self.bandwidth = _mean(self.bandwidth, sent / max(0.05, total_s - self.setup_s), 1e6, 12.5e9)
        if rss:
            self.dirty = _mean(self.dirty, sent / rss, 0.05, 4.0)


def _mean(old: float, new: float, least: float, most: float) -> float:
    return old + _WEIGHT * (min(most, max(least, new)) - old)
