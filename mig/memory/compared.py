"""Pre-copy by reading and comparing, for kernels that do not tell what was written (before Linux 6.7), and where that cannot be asked.

Each round reads all memory and sends what has another fingerprint than what the store holds.  Whether a page has changed since it was read
is not known at the freeze, so nothing is called current: the page source compares every page once more when it is its turn after the
resume, and tells the destination to take its own where it is the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from mig.kernel import pagemap
from mig.memory.copier import CannotTrack, Copier
from mig.memory.fingerprints import Fingerprints, Part
from mig.memory.precopy import Process, Sink
from mig.memory.ranges import join
from mig.memory.reader import Reader, batches
from mig.memory.rounds import Policy


class Compared:
    """The memory of one process, read again and again."""

    def __init__(self, p: Process, known: Fingerprints) -> None:
        """Raises ``OSError``."""
        self._process, self._known = p, known
        self._pagemap = os.open(f"/proc/{p.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._reader = Reader()
        self._first = True

    def written(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """``(data, zero)``: what does not read as the store has it (at the first call: all that is there), and what reads as zero."""
        there = [r for start, end in join(self._process.ranges) for r in self.still(start, end)]
        if self._first:
            self._first = False
            return there, []
        data: list[tuple[int, int]] = []
        zero: list[tuple[int, int]] = []
        for batch in batches(there):
            for start, contents in self._reader.read(self._process.pid, batch):
                for part, a, b in self._known.split(self._process.index, start, contents):
                    if part is not Part.SAME:
                        (data if part is Part.SEND else zero).append((start + a, start + b))
        return join(data), zero

    def still(self, start: int, end: int) -> list[tuple[int, int]]:
        """All that is there."""
        return list(pagemap.contents(self._pagemap, start, end))

    def close(self) -> None:
        """Nothing of it is in the process; idempotent."""
        if self._pagemap >= 0:
            os.close(self._pagemap)
        self._pagemap = -1


class Comparer(Copier[Compared]):
    """Pre-copy of some processes.  Raises :class:`mig.memory.copier.CannotTrack` when none of them can be read."""

    def __init__(self, processes: Sequence[Process], sink: Sink, policy: Policy, bytes_per_s: float = 0.0) -> None:
        super().__init__(sink, policy, bytes_per_s)
        for p in processes:
            if not p.ranges:
                continue
            try:
                self._add(p, Compared(p, self.known))
            except OSError as e:
                self.why = f"process {p.pid}: {e.strerror}"
        if not self._watches:
            raise CannotTrack(errno.ENOTSUP, self.why or "there is no memory to send")
