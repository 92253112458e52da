"""Memory that goes before the freeze: what the page source asks of whoever tracks writes, and the tracker that does nothing.

It runs in the page source's process (:mod:`mig.memory.source_main`), in a thread of its own, blocking.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mig.memory.fingerprints import Fingerprints
from mig.memory.frames import Range

log = logging.getLogger(__name__)

WATCHING = "MIG_TRACKING"
"""Environment of omdiscd: ``compare`` finds out what was written as on a kernel that does not tell."""
MAX_ROUNDS = 8
"""Rounds before the freeze at the most; as a rule one that shrinks by less than a fifth is the last."""


@dataclass(frozen=True)
class Process:
    """One process of the tree: its place in the layout, its pid as this node sees it, and the ranges that will be hidden from CRIU."""

    index: int
    pid: int
    ranges: list[tuple[int, int]] = field(default_factory=list)


class Sink(Protocol):
    """The push connection, for pages that go into the destination's store."""

    def store(self, index: int, addr: int, contents: memoryview) -> int:
        """Send the contents of some pages, packed if that pays; blocking; returns bytes on the wire.  Raises ``OSError``."""


@dataclass(frozen=True)
class Rounds:
    """What pre-copying came to: rounds, bytes on the wire, bytes of memory."""

    rounds: int = 0
    wire: int = 0
    bytes: int = 0


class Tracker(Protocol):
    """One move's pre-copy.  ``known``: what the store has got; ``why``: what was left out."""

    known: Fingerprints
    why: str

    def rounds(self) -> Rounds:
        """Send pages while the processes run, until another round does not pay or :meth:`stop` was called."""

    def stop(self) -> None:
        """End :meth:`rounds` soon; from another thread."""

    def current(self, processes: Sequence[Process]) -> list[Range]:
        """The processes stand frozen: of their ranges (which may differ from those at the start) what the store has as it is now."""

    def hot(self) -> list[Range]:
        """What was written last, the hottest first: it is pushed first."""

    def close(self) -> None:
        """Stop tracking; after the move (it costs 20-39 ms/GiB).  Idempotent."""


class NoTracking:
    """No pre-copy: everything is fetched after the resume."""

    def __init__(self, why: str = "") -> None:
        self.why = why
        self.known = Fingerprints()

    def rounds(self) -> Rounds:
        """Nothing is sent."""
        return Rounds()

    def stop(self) -> None:
        """Nothing to stop."""

    def current(self, processes: Sequence[Process]) -> list[Range]:
        """The store is empty."""
        return []

    def hot(self) -> list[Range]:
        """Not known."""
        return []

    def close(self) -> None:
        """Nothing to close."""


def start(processes: Sequence[Process], sink: Sink, *, limit_bps: int = 0, max_rounds: int = 0, to_the_end: bool = False) -> Tracker:
    """Begin to track ``processes``.  ``limit_bps``: bits a second at the most, 0 without bound; ``max_rounds``: 0 for no pre-copy;
    ``to_the_end``: what stays behind travels inside the freeze.

    Never fails for lack of a trick: where the kernel does not tell what was written, memory is read and compared; where that is impossible
    too there is no pre-copy, and the log says why.
    """
    from mig.memory import compared, copier, tracker  # which import this module
    from mig.memory.rounds import Policy

    if not max_rounds:
        return NoTracking()
    policy = Policy(max_rounds=max_rounds, to_the_end=to_the_end)
    why = f"{WATCHING} says so"
    try:
        if os.environ.get(WATCHING) != "compare":
            return tracker.WriteTracker(processes, sink, policy, limit_bps / 8)
    except copier.CannotTrack as e:
        why = str(e.strerror)
    log.info("pre-copy by comparing: %s", why)
    try:
        return compared.Comparer(processes, sink, policy, limit_bps / 8)
    except copier.CannotTrack as e:
        log.info("no pre-copy: %s", e.strerror)
        return NoTracking(str(e.strerror))
