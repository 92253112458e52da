"""What the page source has still to send of several processes, and in which order (see :mod:`mig.memory.push`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mig.memory.frames import Range
from mig.memory.push import PushOrder


class Todo:
    """Ranges of several processes' memory.  Not safe for threads."""

    def __init__(self, ranges: Iterable[Range], hot: Iterable[Range] = ()) -> None:
        """``hot``: written lately, the last first."""
        left: dict[int, list[tuple[int, int]]] = {}
        warm: dict[int, list[tuple[int, int]]] = {}
        for r in ranges:
            left.setdefault(r.process, []).append((r.start, r.end))
        for r in hot:
            warm.setdefault(r.process, []).append((r.start, r.end))
        self._orders = {process: PushOrder(known, [warm.get(process, ())]) for process, known in left.items()}
        self._chunk: deque[Range] = deque()  # given out as one, in several ranges
        self._last = next(iter(self._orders), -1)

    @property
    def bytes(self) -> int:
        """Bytes left."""
        return sum(o.bytes for o in self._orders.values()) + sum(r.end - r.start for r in self._chunk)

    def fault(self, process: int, addr: int, length: int) -> None:
        """These pages were asked for and are sent: the next ones are those behind."""
        self._forget(process, addr, addr + length)
        if process in self._orders:
            self._orders[process].demanded(addr)
            self._last = process

    def drop(self, process: int, start: int, end: int) -> None:
        """Nobody needs these any more."""
        self._forget(process, start, end)
        if process in self._orders:
            self._orders[process].drop(start, end)

    def take(self) -> Range | None:
        """The next pages, which are taken for sent; None when nothing is left."""
        if not self._chunk:
            for process in (self._last, *self._orders):
                if process in self._orders and (chunk := self._orders[process].next()):
                    self._chunk.extend(Range(process, a, b) for a, b in chunk)
                    break
        return self._chunk.popleft() if self._chunk else None

    def _forget(self, process: int, start: int, end: int) -> None:
        chunk = [r for r in self._chunk if r.process != process or r.end <= start or r.start >= end]
        if len(chunk) < len(self._chunk):
            for r in self._chunk:
                if r.process == process and r.start < end and r.end > start:
                    chunk += [Range(process, a, b) for a, b in ((r.start, start), (end, r.end)) if a < b]
            self._chunk = deque(chunk)
