"""Which pages of a guest have not arrived yet, and where in the source's address space each of them lies.

Pure bookkeeping over what a userfaultfd tells of a guest that already runs: it unmaps, discards, moves memory and forks while its pages
are on their way.  Addresses and lengths are bytes, multiples of the page size by the caller's word; ranges are half open.

The rules of the kernel that a caller has to keep (``fs/userfaultfd.c``), or a page is placed where it does not belong any more:

* A read gives page faults *before* events that happened earlier.  While an event is unread, ``UFFDIO_COPY`` and ``UFFDIO_ZEROPAGE``
  answer ``EAGAIN``.  So: at ``EAGAIN`` note what was placed so far, read the events, feed them in here, and **look the address up
  again**; a fault at an address that is not missing here is a zero page only when ``UFFDIO_ZEROPAGE`` then succeeds.
* One thread reads events and places pages, or both under one lock: between the reading of ``REMOVE`` and its entry here nothing may be
  placed.
* ``UFFDIO_COPY`` never overwrites (``EEXIST``): such a page counts as arrived.  ``ENOENT`` is said too early: the kernel looks for the
  area before it looks for calls under way, and takes one area at a time.  Only for a single page, with no call under way and nothing
  unread, it means dropped: not mapped, or mapped anew; wake whoever waits there, and he gets his signal.  ``ESRCH``: the address space has
  ended or was left by ``execve``.
* ``FORK`` is the copy of its parent at the moment of the reading: the kernel lets no page be placed between the fork and that.
* Two threads' calls that overlap in time may have their events queued in the other order: :mod:`mig.memory.order`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """``[start, end)`` of the guest is missing, and is to be had from ``source`` on at the source."""

    start: int
    end: int
    source: int


class Missing:
    """The missing pages of one address space.  Every source page is missing at one place of it at the most."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """``ranges``: missing at first, at the same addresses as at the source."""
        joined = join(ranges)
        self._starts = [start for start, _ in joined]
        self._ends = [end for _, end in joined]
        self._shifts = [0] * len(joined)  # source address minus guest address
        self._moved: list[tuple[int, int, int]] = []  # (source, source end, shift) of the pieces with a shift, in order of source
        self.bytes = sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[Piece]:
        for start, end, shift in zip(self._starts, self._ends, self._shifts, strict=True):
            yield Piece(start, end, start + shift)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def copy(self) -> Missing:
        """What a forked child has."""
        m = Missing()
        m._starts, m._ends, m._shifts, m._moved = self._starts[:], self._ends[:], self._shifts[:], self._moved[:]
        m.bytes = self.bytes
        return m

    def add(self, start: int, end: int, source: int | None = None) -> None:
        """``[start, end)`` is missing; what was known of it before is forgotten.  ``source``: where it lies there, if not at ``start``."""
        if start < end:
            self.drop(start, end)
            self._put(Piece(start, end, start if source is None else source))

    def find(self, addr: int, limit: int = 0) -> Piece | None:
        """The missing piece at the page of ``addr`` (any byte of a page that begins a piece or lies in one), or None: it reads as zero.

        It begins at ``addr`` and ends where the run of pages with neighbouring sources ends, or after ``limit`` bytes (0: no limit).
        """
        i = bisect_right(self._starts, addr) - 1
        if i < 0 or self._ends[i] <= addr:
            return None
        end = self._ends[i] if not limit else min(self._ends[i], addr + limit)
        return Piece(addr, end, addr + self._shifts[i])

    def after(self, addr: int) -> int | None:
        """Where the first missing piece begins that lies at ``addr`` or behind; None when there is none."""
        i = bisect_left(self._starts, addr)
        return self._starts[i] if i < len(self._starts) else None

    def within(self, start: int, end: int) -> list[Piece]:
        """The missing parts of ``[start, end)``."""
        out = []
        for i in range(*self._span(start, end)):
            a, b = max(start, self._starts[i]), min(end, self._ends[i])
            out.append(Piece(a, b, a + self._shifts[i]))
        return out

    def ahead(self, start: int, end: int, size: int, pieces: int) -> list[Piece]:
        """The first of what is missing in ``[start, end)``: ``size`` bytes and so many pieces at the most."""
        out: list[Piece] = []
        i, j = self._span(start, end)
        for k in range(i, min(j, i + pieces)):
            a = max(start, self._starts[k])
            b = min(end, self._ends[k], a + size)
            out.append(Piece(a, b, a + self._shifts[k]))
            size -= b - a
            if not size:
                break
        return out

    def places(self, source: int, source_end: int) -> list[Piece]:
        """Where the source's ``[source, source_end)`` is missing here."""
        out = [p for p in self.within(source, source_end) if p.source == p.start] if self._starts else []
        if self._moved:
            i = bisect_right(self._moved, (source, 0, 0)) - 1
            for a, b, shift in self._moved[max(i, 0) :]:
                if a >= source_end:
                    break
                a, b = max(a, source), min(b, source_end)
                if a < b:
                    out.append(Piece(a - shift, b - shift, a))
        return out

    def drop(self, start: int, end: int) -> list[Piece]:
        """``[start, end)`` has arrived, or was unmapped or discarded; returns what of it was missing."""
        i, j = self._span(start, end)
        if i == j:
            return []
        gone = self.within(start, end)
        before, after = (self._starts[i], start, self._shifts[i]), (end, self._ends[j - 1], self._shifts[j - 1])
        rest = [p for p in (before, after) if p[0] < p[1]]
        for k in range(i, j):
            if self._shifts[k]:
                self._forget_moved(k)
        self._starts[i:j] = [p[0] for p in rest]
        self._ends[i:j] = [p[1] for p in rest]
        self._shifts[i:j] = [p[2] for p in rest]
        for a, b, shift in rest:
            if shift:
                insort(self._moved, (a + shift, b + shift, shift))
        self.bytes -= sum(p.end - p.start for p in gone)
        return gone

    def move(self, old: int, new: int, length: int) -> None:
        """``mremap``: what was missing in ``[old, old + length)`` is missing from ``new`` on; what ``new`` had was unmapped by it."""
        taken = self.drop(old, old + length)
        self.drop(new, new + length)
        for p in taken:
            self._put(Piece(p.start - old + new, p.end - old + new, p.source))

    def clear(self) -> None:
        """Nothing is missing any more: the address space is gone."""
        self.__init__()  # type: ignore[misc]

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """Indices ``[i, j)`` of the pieces that ``[start, end)`` touches."""
        i = bisect_right(self._starts, start)
        if i and self._ends[i - 1] > start:
            i -= 1
        return i, max(i, bisect_left(self._starts, end))

    def _forget_moved(self, k: int) -> None:
        shift = self._shifts[k]
        del self._moved[bisect_left(self._moved, (self._starts[k] + shift, self._ends[k] + shift, shift))]

    def _put(self, p: Piece) -> None:
        """Insert a piece into a gap, joined to a neighbour that it continues."""
        start, end, shift = p.start, p.end, p.source - p.start
        self.bytes += end - start
        i = j = bisect_left(self._starts, start)
        if i and self._ends[i - 1] == start and self._shifts[i - 1] == shift:
            i -= 1
            start = self._starts[i]
        if j < len(self._starts) and self._starts[j] == end and self._shifts[j] == shift:
            end = self._ends[j]
            j += 1
        if shift:
            for k in range(i, j):
                self._forget_moved(k)
            insort(self._moved, (start + shift, end + shift, shift))
        self._starts[i:j], self._ends[i:j], self._shifts[i:j] = [start], [end], [shift]


class Place(NamedTuple):
    """Where one piece of the source's memory is to be placed: into which address space, and where there."""

    space: int
    start: int
    end: int
    source: int


class Spaces:
    """The address spaces of a guest and of the children that it forked meanwhile, each named by a number of the caller's (its uffd)."""

    def __init__(self) -> None:
        self.missing: dict[int, Missing] = {}

    def open(self, space: int, ranges: Iterable[tuple[int, int]]) -> None:
        """An address space of the images: ``ranges`` of it are missing, at the source's addresses."""
        self.missing[space] = Missing(ranges)

    def fork(self, space: int, child: int) -> None:
        """Event FORK of ``space``: the new descriptor stands for ``child``."""
        self.missing[child] = self.missing[space].copy()

    def remove(self, space: int, start: int, end: int) -> None:
        """Event REMOVE or UNMAP: whatever is on its way for this range is not wanted any more."""
        self.missing[space].drop(start, end)

    def remap(self, space: int, old: int, new: int, length: int) -> None:
        """Event REMAP."""
        self.missing[space].move(old, new, length)

    def close(self, space: int) -> None:
        """The address space has ended (``ESRCH``); not an error for one that is not known."""
        self.missing.pop(space, None)

    def find(self, space: int, addr: int, limit: int = 0) -> Piece | None:
        """See :meth:`Missing.find`; ``addr`` is the beginning of a page."""
        return self.missing[space].find(addr, limit)

    def places(self, source: int, source_end: int) -> list[Place]:
        """Everywhere that ``[source, source_end)`` of the source is still missing: its bytes are to be placed at each."""
        return [Place(space, *p) for space, m in self.missing.items() for p in m.places(source, source_end)]

    def arrived(self, space: int, start: int, end: int) -> None:
        """``[start, end)`` has been placed (or was there already, or is not mapped any more)."""
        self.missing[space].drop(start, end)

    def wanted(self, source: int, source_end: int) -> list[tuple[int, int]]:
        """The parts of ``[source, source_end)`` of the source that are missing anywhere, in order, joined: what is worth sending."""
        return join((p.source, p.source + p.end - p.start) for p in self.places(source, source_end))

    def left(self) -> list[tuple[int, int]]:
        """Every source range that is missing anywhere, in order, joined."""
        return join((p.source, p.source + p.end - p.start) for m in self.missing.values() for p in m)

    def __bool__(self) -> bool:
        return any(self.missing.values())


def join(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of half open ranges, in order; neighbours become one."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            if end > out[-1][1]:
                out[-1] = (out[-1][0], end)
        elif start < end:
            out.append((start, end))
    return out


def subtract(ranges: Iterable[tuple[int, int]], without: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of ``ranges`` that are not in ``without``, in order, joined."""
    out: list[tuple[int, int]] = []
    gone = join(without)
    at = 0
    for start, end in join(ranges):
        while at < len(gone) and gone[at][1] <= start:
            at += 1
        k = at
        while k < len(gone) and gone[k][0] < end:
            if start < gone[k][0]:
                out.append((start, gone[k][0]))
            start = gone[k][1]
            k += 1
        if start < end:
            out.append((start, end))
    return out


def intersect(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is in both of two lists of ranges, each in order and without overlaps."""
    out = []
    i = j = 0
    while i < len(one) and j < len(other):
        start, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if start < end:
            out.append((start, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return out
