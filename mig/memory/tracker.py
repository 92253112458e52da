"""Pre-copy where the kernel tells what was written (Linux 6.7).

Between the scan of a round, which protects in the same moment, and the freeze a page that does not show as written has not changed; as it
was read after that scan, what the destination's store has of it is current.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from mig.memory import inject, written
from mig.memory.copier import CannotTrack, Copier
from mig.memory.frames import Range
from mig.memory.precopy import Process, Sink
from mig.memory.ranges import intersect, join
from mig.memory.rounds import Policy

O_DIRECT = 0o40000


class WriteTracker(Copier[written.Writes]):
    """Pre-copy of some processes.  Raises :class:`CannotTrack` when none of them can be tracked; ``why`` says what was left out."""

    def __init__(self, processes: Sequence[Process], sink: Sink, policy: Policy, bytes_per_s: float = 0.0) -> None:
        super().__init__(sink, policy, bytes_per_s)
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
            try:
                self._add(wanted[pid], written.Writes(pid, *begun))
            except OSError as e:
                self.why = f"process {pid}: {e}"
        if not self._watches:
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

    def current(self, processes: Sequence[Process]) -> list[Range]:
        """See :meth:`mig.memory.precopy.Tracker.current`.  Never raises: of a process that cannot be looked at nothing is current."""
        out: list[Range] = []
        for p in processes:
            w = self._watches.get(p.index)
            if w is None or self._pids[p.index] != p.pid or self._direct(p.pid):
                continue
            try:
                unwritten = w.unwritten()
            except OSError:
                continue
            sent = [(piece.start, piece.end) for piece in self._sent[p.index]]
            out += (Range(p.index, a, b) for a, b in intersect(intersect(unwritten, sent), join(p.ranges)))
        return out
