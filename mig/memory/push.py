"""In which order pages are pushed after the resume.  Pure: told of faults, it answers with the next chunk.

Three rules, each worth an order of magnitude in what a guest gets done in its first second (1 GiB, 64 MiB of it hot, 1 Gbit/s: pushing by
address 800 steps/s, following the faults 73 000):

1. *behind a fault*: the guest is there now, so the next chunk begins right behind the page that it demanded.  A fault that continues
   such a chunk doubles what is sent behind the next one (a sequential reader), up to :data:`WIDEST`;
2. *hot pages first*: those written in the last rounds before the freeze, the last round's first;
3. *then the rest*, from the last fault on, round the corner to the beginning.

Addresses are the source's, in bytes.  Ranges are of one process; whoever has several keeps an order for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from mig.memory.frames import CHUNK, PAGE
from mig.memory.ranges import Missing, intersect, join, subtract

WIDEST = 512 << 10
"""Bytes sent at the most behind one fault."""
STREAMS = 4
"""Faults that are followed at the same time; each thread of the guest makes a stream of its own."""
PIECES = 64
"""Ranges in one chunk at the most: scattered pages cost a header each."""
_TOP = 1 << 64


class PushOrder:
    """What is still to be pushed of one process, and in which order."""

    def __init__(self, left: Iterable[tuple[int, int]], hot: Sequence[Iterable[tuple[int, int]]] = (), chunk: int = CHUNK) -> None:
        """``left``: all that the destination lacks.  ``hot``: sets of ranges, the hottest first; only what is in ``left`` counts."""
        rest = join(left)
        self.chunk = chunk
        self.tiers: list[Missing] = []
        for ranges in hot:
            wanted = join(ranges)
            if tier := intersect(rest, wanted):
                self.tiers.append(Missing(tier))
                rest = subtract(rest, wanted)
        self.tiers.append(Missing(rest))
        self._behind: deque[tuple[int, int]] = deque(maxlen=STREAMS)  # where to go on behind a fault, and up to which address
        self._windows: deque[tuple[int, int, int]] = deque(maxlen=STREAMS)  # what was planned behind the last faults: start, end, width
        self._cursor = 0

    @property
    def bytes(self) -> int:
        """Still to be pushed."""
        return sum(t.bytes for t in self.tiers)

    def demanded(self, addr: int) -> None:
        """The guest waits for the page at ``addr``, which is on its way by itself."""
        self.drop(addr, addr + PAGE)
        width = self.chunk
        for start, end, before in self._windows:
            if start <= addr <= end:  # it reads on where it was led to
                width = min(2 * before, WIDEST)
        self._behind.append((addr + PAGE, addr + PAGE + width))
        self._windows.append((addr + PAGE, addr + PAGE + width, width))
        self._cursor = addr + PAGE

    def drop(self, start: int, end: int) -> None:
        """``[start, end)`` was sent otherwise, or is not wanted any more."""
        for t in self.tiers:
            t.drop(start, end)

    def next(self, size: int = 0) -> list[tuple[int, int]]:
        """The next chunk: ranges in order, ``size`` bytes (0: ``chunk``) in all at the most; empty when everything was given out."""
        size = size or self.chunk
        while self._behind:
            start, end = self._behind.pop()  # the last fault first
            taken = self._take(self.tiers, start, end, size)
            if taken:
                if taken[-1][1] < end:
                    self._behind.append((taken[-1][1], end))
                return taken
        while len(self.tiers) > 1 and not self.tiers[0]:
            del self.tiers[0]
        taken = self._take(self.tiers[:1], self._cursor, _TOP, size) or self._take(self.tiers[:1], 0, _TOP, size)
        if taken:
            self._cursor = taken[-1][1]
        return taken

    def _take(self, tiers: list[Missing], start: int, end: int, size: int) -> list[tuple[int, int]]:
        """Out of the tiers: the first chunk of what they have in ``[start, end)``."""
        left, out = size, []
        for a, b in join((p.start, p.end) for t in tiers for p in t.ahead(start, end, size, PIECES))[:PIECES]:
            b = min(b, a + left)
            for t in tiers:
                t.drop(a, b)
            out.append((a, b))
            left -= b - a
            if not left:
                break
        return out
