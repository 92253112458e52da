"""Pre-copy: pages go while the processes run, in rounds, and whatever was written meanwhile goes again or is left for later.

Runs in the page source's process, blocking.  Between the scan of a round, which protects in the same moment, and the freeze a page that
does not show as written has not changed; as it was read after that scan, what the destination's store has of it is current.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from mig.kernel.libc import _Iovec
from mig.kernel.libc import _libc as libc
from mig.memory import inject, written
from mig.memory.frames import PAGE, Range
from mig.memory.packing import split_zero
from mig.memory.precopy import Process, Rounds, Sink
from mig.memory.ranges import Missing, join
from mig.memory.rounds import Bucket, Policy

BATCH = 256 << 10
"""Bytes read from the process at a time: the unit of packing."""
PIECES = 256
"""Ranges read at a time (IOV_MAX is 1024)."""
NEAR = 8
"""Ranges that lie within so many times their size are asked about in one call."""
O_DIRECT = 0o40000


class CannotTrack(OSError):
    """Writes cannot be tracked here, or not for these processes; nothing was changed."""


class WriteTracker:
    """Pre-copy of some processes.  Raises :class:`CannotTrack` when none of them can be tracked; ``why`` says what was left out."""

    def __init__(self, processes: Sequence[Process], sink: Sink, policy: Policy, bytes_per_s: float = 0.0) -> None:
        self.policy = policy
        self.why = ""
        self._sink = sink
        self._bucket = Bucket(bytes_per_s)
        self._stop = threading.Event()
        self._buffer = (ctypes.c_char * BATCH)()
        self._view = memoryview(self._buffer).cast("B")
        self._writes: dict[int, written.Writes] = {}
        self._pids: dict[int, int] = {}
        self._sent: dict[int, Missing] = {}  # pages whose contents, read after they were last protected, are in the store
        self._rounds: list[list[Range]] = []  # what was found written, one list a scan
        self._wire = self._bytes = 0
        if not written.available():
            raise CannotTrack(errno.ENOSYS, "this kernel has no PAGEMAP_SCAN with asynchronous write protection (Linux 6.7)")
        wanted = {p.pid: p for p in processes if p.ranges and not self._direct(p.pid)}
        try:
            got = inject.track({p.pid: p.ranges for p in wanted.values()}) if wanted else {}
        except OSError as e:
            raise CannotTrack(e.errno, str(e.strerror)) from e
        for pid, begun in got.items():
            if isinstance(begun, str):
                self.why = f"process {pid}: {begun}"
                continue
            p = wanted[pid]
            try:
                self._writes[p.index] = written.Writes(pid, *begun)
            except OSError as e:
                self.why = f"process {pid}: {e}"
                continue
            self._pids[p.index] = pid
            self._sent[p.index] = Missing()
        if not self._writes:
            raise CannotTrack(errno.ENOTSUP, self.why or "there is no memory to track")

    def _direct(self, pid: int) -> bool:
        """Direct I/O writes into memory past the page tables, so that it does not show as written."""
        try:
            for name in os.listdir(f"/proc/{pid}/fdinfo"):
                with open(f"/proc/{pid}/fdinfo/{name}", "rb") as f:
                    flags = next((line for line in f if line.startswith(b"flags:")), b"flags: 0")
                if int(flags.split()[1], 8) & O_DIRECT:
                    self.why = f"process {pid} has descriptor {name} open for direct I/O"
                    return True
        except OSError:
            pass  # it ends, or that descriptor was closed
        return False

    # -- while they run ---------------------------------------------------------------------------------------------------------

    def rounds(self) -> Rounds:
        """See :meth:`mig.memory.precopy.Tracker.rounds`.  Raises ``OSError`` of the connection.

        Sizes, by which rounds are judged, are what was found written; what was written again before its turn came is not sent.
        """
        began = time.monotonic()
        while not self._stop.is_set():
            found = self._scan()
            if not self.policy.wants(sum(r.end - r.start for r in found), time.monotonic() - began):
                break
            for index in list(self._writes):
                self._send(index, [(r.start, r.end) for r in found if r.process == index])
        return Rounds(len(self.policy.sent), self._wire, self._bytes)

    def stop(self) -> None:
        """See :meth:`mig.memory.precopy.Tracker.stop`."""
        self._stop.set()

    def _scan(self) -> list[Range]:
        found: list[Range] = []
        for index, w in list(self._writes.items()):
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

    def _ended(self, index: int) -> None:
        """A process of the tree has ended meanwhile: it will not be there when all stand still."""
        self._writes.pop(index).close()

    def _send(self, index: int, ranges: list[tuple[int, int]]) -> None:
        pid, sent = self._pids[index], self._sent[index]
        for batch in batches(ranges):
            at = 0
            try:
                wanted = self._worth_sending(index, batch)
            except ProcessLookupError:
                self._ended(index)
                return
            for start, end in self._read(pid, wanted):
                if self._stop.is_set():
                    return
                for zero, a, b in split_zero(self._view[at : at + end - start]):
                    if not zero:
                        self._store(index, start + a, self._view[at + a : at + b])
                        sent.add(start + a, start + b)
                at += end - start

    def _worth_sending(self, index: int, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Without what was written again since the scan: it has to go once more anyway, so that a page in steady use is never sent here."""
        spans = [(batch[0][0], batch[-1][1])] if batch[-1][1] - batch[0][0] <= NEAR * BATCH else batch
        return intersect(batch, [piece for start, end in spans for piece in self._writes[index].still(start, end)])

    def _store(self, index: int, addr: int, contents: memoryview) -> None:
        n = self._sink.store(index, addr, contents)
        self._wire += n
        self._bytes += len(contents)
        if (delay := self._bucket.delay(n, time.monotonic())) > 0:
            self._stop.wait(delay)

    def _read(self, pid: int, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Fill the buffer with the batch's ranges; returns those that were read: what is unmapped meanwhile is left out."""
        local = _Iovec(ctypes.addressof(self._buffer), BATCH)
        remote = (_Iovec * len(batch))(*[_Iovec(start, end - start) for start, end in batch])
        total = sum(end - start for start, end in batch)
        if not total:
            return batch
        n = libc.process_vm_readv(pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(batch), 0)
        if n == total:
            return batch
        got: list[tuple[int, int]] = []
        left = max(n, 0) // PAGE * PAGE
        for start, end in batch:
            if left <= 0:
                break
            end = min(end, start + left)
            got.append((start, end))
            left -= end - start
        return got

    # -- when they stand still --------------------------------------------------------------------------------------------------

    def current(self, processes: Sequence[Process]) -> list[Range]:
        """See :meth:`mig.memory.precopy.Tracker.current`.  Never raises: of a process that cannot be looked at nothing is current."""
        out: list[Range] = []
        for p in processes:
            w = self._writes.get(p.index)
            if w is None or self._pids[p.index] != p.pid or self._direct(p.pid):
                continue
            try:
                unwritten = w.unwritten()
            except OSError:
                continue
            sent = [(piece.start, piece.end) for piece in self._sent[p.index]]
            out += (Range(p.index, a, b) for a, b in intersect(intersect(unwritten, sent), join(p.ranges)))
        return out

    def hot(self) -> list[Range]:
        """See :meth:`mig.memory.precopy.Tracker.hot`: the scans after the first, the last one first."""
        return [r for found in reversed(self._rounds[1:]) for r in found]

    def close(self) -> None:
        """See :meth:`mig.memory.precopy.Tracker.close`."""
        self._stop.set()
        for w in self._writes.values():
            w.close()
        self._writes.clear()


def batches(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The ranges in order, cut into lists of :data:`BATCH` bytes and :data:`PIECES` ranges at the most."""
    out: list[tuple[int, int]] = []
    left = BATCH
    for start, end in ranges:
        while start < end:
            n = min(end - start, left)
            out.append((start, start + n))
            start, left = start + n, left - n
            if not left or len(out) == PIECES:
                yield out
                out, left = [], BATCH
    if out:
        yield out


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
