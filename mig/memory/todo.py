"""What the page source has still to send, and in which order: just behind the last fault, as a program that reads on wants it."""

from __future__ import annotations

from collections.abc import Iterable

from mig.memory.frames import Range
from mig.memory.ranges import Missing


class Todo:
    """Ranges of several processes' memory.  Not safe for threads."""

    def __init__(self, ranges: Iterable[Range], hot: Iterable[Range] = ()) -> None:
        self._left: dict[int, Missing] = {}
        for r in ranges:
            self._left.setdefault(r.process, Missing()).add(r.start, r.end)
        self._hot = list(reversed(list(hot)))
        self._at: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """Bytes left."""
        return sum(m.bytes for m in self._left.values())

    def fault(self, process: int, addr: int, length: int) -> None:
        """These pages were asked for and are sent: the next ones are those behind."""
        self.drop(process, addr, addr + length)
        self._at = (process, addr + length)

    def drop(self, process: int, start: int, end: int) -> None:
        """Nobody needs these any more."""
        if (m := self._left.get(process)) is not None:
            m.drop(start, end)

    def take(self, size: int) -> Range | None:
        """The next pages, ``size`` bytes at the most, which are taken for sent; None when nothing is left."""
        found = self._behind_fault(size) or self._hottest(size) or self._first(size)
        if found is not None:
            self._left[found.process].drop(found.start, found.end)
            if self._at is not None:
                self._at = (found.process, found.end)
        return found

    def _behind_fault(self, size: int) -> Range | None:
        if self._at is None:
            return None
        process, addr = self._at
        left = self._left.get(process)
        piece = left.find(addr, size) if left is not None else None
        if piece is None and left is not None and (following := left.after(addr)) is not None:
            piece = left.find(following, size)
        if piece is None:
            self._at = None
            return None
        return Range(process, piece.start, piece.end)

    def _hottest(self, size: int) -> Range | None:
        while self._hot:
            r = self._hot[-1]
            pieces = self._left[r.process].within(r.start, r.end) if r.process in self._left else []
            if pieces:
                return Range(r.process, pieces[0].start, min(pieces[0].end, pieces[0].start + size))
            self._hot.pop()
        return None

    def _first(self, size: int) -> Range | None:
        for process, left in self._left.items():
            if (piece := next(iter(left), None)) is not None:
                return Range(process, piece.start, min(piece.end, piece.start + size))
        return None
