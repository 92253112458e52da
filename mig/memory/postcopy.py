"""The carrier that keeps memory out of the pause: hidden from the dump, served and pushed by a page source after the resume.

With ``mode`` ``pre-copy`` and ``pre-copy-only`` pages are also sent before the freeze; with the second the rest is fetched in the pause
(:attr:`PostCopy.to_the_end`), by the same page source and pager.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mig.criu.dumper import DumpResult
from mig.memory import hide
from mig.memory.carrier import Moved
from mig.memory.page_source import PageSource
from mig.memory.precopy import MAX_ROUNDS
from mig.model import NodeInfo

Members = Callable[[], dict[int, int]]


class PostCopy:
    """One move's.  ``members``: gives the processes whose memory is hidden, as this node sees them, to their numbers in the images."""

    def __init__(self, node: NodeInfo, members: Members, *, mode: str = "post-copy", why: str = "", limit_bps: int = 0) -> None:
        self.mode, self.why = mode, why
        self.node, self.members, self.limit_bps = node, members, limit_bps
        self.pids = members()
        self.source: PageSource | None = None
        self.places: dict[int, int] | None = None  # once frozen: index by pid
        self.processes: list[tuple[int, int, list[tuple[int, int]]]] = []
        self.moved = Moved()

    @property
    def to_the_end(self) -> bool:
        """Whether the destination must have everything before the commit."""
        return self.mode == "pre-copy-only"

    async def prepare(self) -> dict[str, Any]:
        """Start the page source; the destination's pager connects to it while it prepares."""
        self.source = PageSource(self.node.addr, self.node.id)
        return {"mode": self.mode, "node": self.node.id, "name": self.node.name, **self.source.address()}

    async def precopy(self) -> Moved:
        """Rounds of pages into the destination's store."""
        assert self.source is not None
        if self.mode != "post-copy":
            ranges = await asyncio.gather(*(asyncio.to_thread(_hideable, p) for p in self.pids))
            processes = [(i, p, r) for i, (p, r) in enumerate(zip(self.pids, ranges, strict=True)) if r]
            done = await self.source.rounds(processes, limit_bps=self.limit_bps, max_rounds=MAX_ROUNDS, to_the_end=self.to_the_end)
            self.moved = Moved(bytes=int(done["wire"]), rounds=int(done["rounds"]))
            if not self.moved.rounds:
                self.mode, self.why = self.mode if self.to_the_end else "post-copy", str(done["why"])
        return self.moved

    async def frozen(self) -> None:
        """Hold on to the address spaces: members that have ended meanwhile are left out, those born meanwhile are there."""
        assert self.source is not None
        self.pids |= self.members()
        self.places = self.source.open(list(self.pids))

    def dump_options(self) -> dict[str, Any]:
        """Hide these processes' memory."""
        return {"mode": "hidden", "pids": [inside for pid, inside in self.pids.items() if self.places is None or pid in self.places]}

    async def dumped(self, result: DumpResult) -> None:
        """From now on it is served: the restore may touch pages already."""
        assert self.source is not None
        hidden = dict(result.hidden)
        assert self.places is not None
        self.processes = [(index, self.pids[pid], hidden[self.pids[pid]]) for pid, index in self.places.items()]
        await self.source.layout({pid: hidden[self.pids[pid]] for pid in self.places})

    def head(self) -> dict[str, Any]:
        """What the images lack."""
        return {"memory": self.processes}

    async def serve(self) -> Moved:
        """Until the destination has everything; returns what was sent after the freeze.

        Raises :class:`mig.memory.page_source.SourceLost`.
        """
        assert self.source is not None
        done = await self.source.all()
        return Moved(bytes=int(done["bytes"]))

    async def close(self) -> None:
        """End the page source."""
        if self.source is not None:
            self.source.close()


def _hideable(pid: int) -> list[tuple[int, int]]:
    try:
        return [(a.mapping.start, a.mapping.end) for a in hide.read_areas(pid) if a.hidden]
    except ProcessLookupError:
        return []
