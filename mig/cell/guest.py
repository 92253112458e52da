"""The running guest as its host sees it: signals, usage."""

from __future__ import annotations

import contextlib
import os

from mig.cell.cell import Cell
from mig.kernel import procfs

TICK = os.sysconf("SC_CLK_TCK")


class Guest:
    """All processes of the tree in one cell; ``pid`` is the root's number here."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.pid = cell.guest_pid

    def pids(self) -> list[int]:
        """Every process of the tree, as this node numbers them."""
        return self.cell.guest_cgroup.procs()

    def signal(self, sig: int, *, group: bool) -> None:
        """Pass a signal on: to the root alone, or to every process of its process group (what a terminal does)."""
        with contextlib.suppress(ProcessLookupError):
            if not group:
                self.cell.signal(sig)
                return
            own = procfs.stat(self.pid).pgid
            for p in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    if procfs.stat(p).pgid == own:
                        os.kill(p, sig)

    def usage(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of the tree as it is now."""
        cpu, rss = 0.0, 0
        for p in self.pids():
            with contextlib.suppress(ProcessLookupError):
                s = procfs.stat(p)
                cpu += (s.utime + s.stime) / TICK
                rss += procfs.status(p).rss
        return cpu, rss
