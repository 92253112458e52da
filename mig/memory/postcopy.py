"""The carrier that keeps memory out of the pause: hidden from the dump, served and pushed by a page source after the resume.

With ``mode`` ``pre-copy`` pages are also sent before the freeze.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from mig.criu.dumper import DumpResult
from mig.kernel import procfs
from mig.memory import hide
from mig.memory.carrier import Moved
from mig.memory.page_source import PageSource
from mig.memory.precopy import MAX_ROUNDS


class PostCopy:
    """One move's.  ``pids``: the processes whose memory is hidden, as this node sees them, to their numbers in the images."""

    def __init__(self, addr: str, pids: Mapping[int, int], *, mode: str = "post-copy", why: str = "", limit_bps: int = 0) -> None:
        self.mode, self.why = mode, why
        self.starts = {p: start for p in pids if (start := _start(p)) is not None}
        self.addr, self.pids, self.limit_bps = addr, {p: inside for p, inside in pids.items() if p in self.starts}, limit_bps
        self.source: PageSource | None = None
        self.processes: list[tuple[int, list[tuple[int, int]]]] = []
        self.moved = Moved()

    async def prepare(self) -> dict[str, Any]:
        """Start the page source; the destination's pager connects to it while it prepares."""
        self.source = PageSource(self.addr)
        return {"mode": self.mode, **self.source.address()}

    async def precopy(self) -> Moved:
        """Rounds of pages into the destination's store."""
        assert self.source is not None
        if self.mode == "pre-copy":
            ranges = await asyncio.gather(*(asyncio.to_thread(_hideable, p) for p in self.pids))
            processes = [(i, p, r) for i, (p, r) in enumerate(zip(self.pids, ranges, strict=True)) if r]
            done = await self.source.rounds(processes, limit_bps=self.limit_bps, max_rounds=MAX_ROUNDS)
            self.moved = Moved(bytes=int(done["wire"]), rounds=int(done["rounds"]))
            if not self.moved.rounds:
                self.mode, self.why = "post-copy", str(done["why"])
        return self.moved

    async def frozen(self) -> None:
        """Hold on to the address spaces; of a tree some may have ended."""
        assert self.source is not None
        self.pids = {p: inside for p, inside in self.pids.items() if _start(p) == self.starts[p]}
        self.source.open(list(self.pids))

    def dump_options(self) -> dict[str, Any]:
        """Hide these processes' memory."""
        return {"mode": "hidden", "pids": list(self.pids.values())}

    async def dumped(self, result: DumpResult) -> None:
        """From now on it is served: the restore may touch pages already."""
        assert self.source is not None
        hidden = dict(result.hidden)
        self.processes = [(inside, hidden[inside]) for inside in self.pids.values()]
        await self.source.layout([(pid, hidden[inside]) for pid, inside in self.pids.items()])

    def head(self) -> dict[str, Any]:
        """What the images lack."""
        return {"memory": self.processes}

    async def serve(self) -> Moved:
        """Until the destination has everything.  Raises :class:`mig.memory.page_source.SourceLost`."""
        assert self.source is not None
        done = await self.source.all()
        return Moved(bytes=self.moved.bytes + int(done["bytes"]), rounds=self.moved.rounds)

    async def close(self) -> None:
        """End the page source."""
        if self.source is not None:
            self.source.close()


def _start(pid: int) -> int | None:
    """When a living process was started; None when it has ended."""
    try:
        now = procfs.stat(pid)
    except ProcessLookupError:
        return None
    return None if now.state in ("Z", "X") else now.start


def _hideable(pid: int) -> list[tuple[int, int]]:
    try:
        return [(a.mapping.start, a.mapping.end) for a in hide.read_areas(pid) if a.hidden]
    except ProcessLookupError:
        return []
