"""The rounds of a pre-copy: pages go while the processes run, and whatever was written meanwhile goes again or is left for later.

Runs in the page source's process, blocking.  How it is found out what was written is the business of those who are built on this:
:mod:`mig.memory.tracker` asks the kernel, :mod:`mig.memory.compared` reads and compares.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from mig.memory.fingerprints import Fingerprints, Part
from mig.memory.frames import PAGE, Range
from mig.memory.precopy import Process, Rounds, Sink
from mig.memory.ranges import Missing, intersect, join, subtract
from mig.memory.reader import BATCH, Reader, batches
from mig.memory.rounds import Bucket, Policy

NEAR = 8
"""Ranges that lie within so many times their size are asked about in one call."""
SAMPLE = 256
"""Pages of those found written that are compared, to know how many of them changed."""
WORTH_READING = 0.02
"""Part of the pages found written that must be wanted for a round: reading and comparing the others costs more than it saves."""
CHANGING = 0.5
"""Part of the pages written again that must have changed for such a page to be taken for one in steady use, which is not sent."""
LOOK_EVERY, BEHIND, NEWS = 4, 4, 0.2
"""Every so many batches one is looked at again, when so many more of them have been sent (4 MiB), and counts with this weight."""


class CannotTrack(OSError):
    """Writes cannot be found out here, or not for these processes; nothing was changed."""


class Watch(Protocol):
    """One process's writes.  All methods raise ``ProcessLookupError`` when it has ended."""

    def written(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """``(data, zero)``: what may have been written since the last call (at the first: all that is there), and reads as zero."""

    def still(self, start: int, end: int) -> list[tuple[int, int]]:
        """The pages of ``[start, end)`` that it pays to send now: those known to have been written again meanwhile are left out."""

    def close(self) -> None:
        """Stop watching; idempotent."""


log = logging.getLogger(__name__)
W = TypeVar("W", bound=Watch)


class Copier(Generic[W]):
    """Pre-copy of some processes.  ``known``: what the store holds; ``why``: what was left out."""

    def __init__(self, sink: Sink, policy: Policy, bytes_per_s: float = 0.0) -> None:
        """Who derives fills in the watches and pids by index."""
        self.policy = policy
        self.known = Fingerprints()
        self.why = ""
        self._sink = sink
        self._bucket = Bucket(bytes_per_s)
        self._stop = threading.Event()
        self._reader = Reader()
        self._watches: dict[int, W] = {}
        self._pids: dict[int, int] = {}
        self._sent: dict[int, Missing] = {}  # pages whose contents, read after the last look for writes, are in the store
        self._rounds: list[list[Range]] = []  # what was found written, one list a scan
        self._changing: float | None = None  # part of the pages written again that have changed; None: not known
        self._wire = self._bytes = 0

    def _add(self, p: Process, watch: W) -> None:
        self._watches[p.index], self._pids[p.index], self._sent[p.index] = watch, p.pid, Missing()

    def rounds(self) -> Rounds:
        """See :meth:`mig.memory.precopy.Tracker.rounds`.  Raises ``OSError`` of the connection.

        Sizes, by which rounds are judged, are what was found written and the store has not, which a sample tells; what was written again
        before its turn came is not sent where writing changes pages, and a page that holds what the store has of it never.
        """
        began = time.monotonic()
        while not self._stop.is_set():
            found = self._scan()
            wanted = self._wanted(found)
            written = sum(r.end - r.start for r in found)
            log.info("round %d: %d bytes written, %.0f %% of them wanted", len(self.policy.sent) + 1, written, wanted * 100)
            if not self.policy.wants(round(wanted * written), time.monotonic() - began):
                break
            for index in list(self._watches):
                self._send(index, [(r.start, r.end) for r in found if r.process == index])
        return Rounds(len(self.policy.sent), self._wire, self._bytes)

    def stop(self) -> None:
        """See :meth:`mig.memory.precopy.Tracker.stop`."""
        self._stop.set()

    def _scan(self) -> list[Range]:
        found: list[Range] = []
        for index, w in list(self._watches.items()):
            try:
                data, zero = w.written()
            except ProcessLookupError:
                self._ended(index)
                continue
            for start, end in (*data, *zero):
                self._sent[index].drop(start, end)
            found += (Range(index, start, end) for start, end in data)
        self._rounds.append(found)
        return found

    def _wanted(self, found: list[Range]) -> float:
        """The part of the pages found written that the store does not hold as they are."""
        total = sum(r.end - r.start for r in found) // PAGE
        some: dict[int, list[tuple[int, int]]] = {}
        before = taken = 0
        for r in found:
            size = (r.end - r.start) // PAGE
            while taken < SAMPLE and (page := total * taken // SAMPLE - before) < size:
                some.setdefault(r.process, []).append((r.start + page * PAGE, r.start + (page + 1) * PAGE))
                taken += 1
            before += size
        same = [x for index, ranges in some.items() for x in self._compare(index, join(ranges))]
        wanted = 1 - same.count(True) / len(same) if same else 1.0
        return wanted if wanted >= WORTH_READING else 0.0

    def _compare(self, index: int, ranges: list[tuple[int, int]]) -> list[bool | None]:
        """Whether each page that can be read is as it was sent; None: it was not."""
        pid = self._pids[index]
        pieces = (piece for batch in batches(ranges) for piece in self._reader.read(pid, batch))
        return [same for addr, contents in pieces for same in self.known.compare(index, addr, contents)]

    def _ended(self, index: int) -> None:
        """A process of the tree has ended meanwhile: it will not be there when all stand still."""
        self._watches.pop(index).close()

    def _send(self, index: int, ranges: list[tuple[int, int]]) -> None:
        pid, sent = self._pids[index], self._sent[index]
        behind: deque[list[tuple[int, int]]] = deque()
        for n, batch in enumerate(batches(ranges)):
            try:
                if len(behind) > BEHIND:
                    self._look_back(index, behind.popleft())
                wanted = batch if self._changing is None or self._changing < CHANGING else self._still(index, batch)
            except ProcessLookupError:
                self._ended(index)
                return
            for start, contents in self._reader.read(pid, wanted):
                if self._stop.is_set():
                    return
                for part, a, b in self.known.split(index, start, contents, keep=True):
                    if part is Part.SEND:
                        self._store(index, start + a, contents[a:b])
                    if part is not Part.ZERO:
                        sent.add(start + a, start + b)
            if n % LOOK_EVERY == 0:
                behind.append(batch)

    def _look_back(self, index: int, batch: list[tuple[int, int]]) -> None:
        """At what was sent a moment ago and written since: whether writing changes what pages hold here."""
        same = self._compare(index, subtract(batch, self._still(index, batch)))
        yes, no = same.count(True), same.count(False)
        if yes + no:
            now = no / (yes + no)
            self._changing = now if self._changing is None else self._changing + NEWS * (now - self._changing)

    def _still(self, index: int, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Without what was written since the scan: it has to go once more anyway, so that a page in steady use is never sent here."""
        spans = [(batch[0][0], batch[-1][1])] if batch[-1][1] - batch[0][0] <= NEAR * BATCH else batch
        return intersect(batch, [piece for start, end in spans for piece in self._watches[index].still(start, end)])

    def _store(self, index: int, addr: int, contents: memoryview) -> None:
        n = self._sink.store(index, addr, contents)
        self._wire += n
        self._bytes += len(contents)
        if (delay := self._bucket.delay(n, time.monotonic())) > 0:
            self._stop.wait(delay)

    def current(self, processes: Sequence[Process]) -> list[Range]:
        """See :meth:`mig.memory.precopy.Tracker.current`: nothing, where nobody has watched without a gap."""
        return []

    def hot(self) -> list[Range]:
        """See :meth:`mig.memory.precopy.Tracker.hot`: the scans after the first, the last one first."""
        return [r for found in reversed(self._rounds[1:]) for r in found]

    def close(self) -> None:
        """See :meth:`mig.memory.precopy.Tracker.close`."""
        self._stop.set()
        for w in self._watches.values():
            w.close()
        self._watches.clear()
