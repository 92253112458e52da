"""What the page source has still to send of several processes, and in which order (see :mod:`mig.memory.push`)."""

from __future__ import annotations

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
        self._last = next(iter(self._orders), -1)

    @property
    def bytes(self) -> int:
        """Bytes left."""
        return sum(o.bytes for o in self._orders.values())

    def fault(self, process: int, addr: int) -> None:
        """A page was asked for and is sent: the next ones are those behind."""
        if process in self._orders:
            self._orders[process].demanded(addr)
            self._last = process

    def take(self, size: int = 0) -> list[Range]:
        """The next pages of one process, in order, ``size`` bytes (0: a chunk) at the most; they are taken for sent.  Empty: all are."""
        for process in (self._last, *self._orders):
            if process in self._orders and (chunk := self._orders[process].next(size)):
                return [Range(process, a, b) for a, b in chunk]
        return []
