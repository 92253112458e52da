"""Brings guests back whose images lie on this node's disk, because nobody had the memory for them: as soon as somebody has."""

from __future__ import annotations

import asyncio
import logging
import time

from mig.economy.policy import order_for_start
from mig.economy.price import NodeView
from mig.errors import MigError
from mig.model import GuestState, NodeInfo
from omdiscd.guests import Guests
from omdiscd.jobs import Jobs
from omdiscd.moves import Mover
from omdiscd.peers import reservation

log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds between two looks whether somebody has room."""
AGAIN, AT_THE_LATEST = 10.0, 600.0
"""Seconds after which one that could not be brought back is tried again: the first time, and at the most; they double each time."""
ASKED = 3
"""Nodes that are asked in one look."""


class Shelf:
    """One guest at a time: each needs memory that the next then has not."""

    def __init__(self, guests: Guests, mover: Mover, jobs: Jobs) -> None:
        self.guests, self.mover, self.jobs = guests, mover, jobs
        self._wait: dict[int, float] = {}
        self._not_before: dict[int, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            await self.look()

    async def look(self) -> None:
        """Bring back those for which there is room, those that have waited longest first."""
        rows = [a.state for a in self.guests.agents() if a.state and a.state.state == "stored"]
        here, now = {s.pid for s in rows}, time.monotonic()
        self._wait = {p: w for p, w in self._wait.items() if p in here}
        self._not_before = {p: t for p, t in self._not_before.items() if p in here and t > now}
        for s in sorted(rows, key=lambda s: s.since):
            if s.pid not in self._not_before and s.pid not in self.mover.active and (to := await self._place(s)) is not None:
                await self._bring(s, to)

    async def _place(self, s: GuestState) -> NodeInfo | None:
        """The node that takes it, where its place is reserved; None while there is none."""
        targets, job = self.mover.targets, self.jobs.table.get(s.pid)
        me, k = targets.me(), 1.0  # what it wanted of the CPU is not known any more
        nodes = {n.id: n for n in targets.open() if not (s.locked or (job and (job.locked or job.home)))}
        if job and job.nodes:
            nodes = {i: n for i, n in nodes.items() if n.name in job.nodes}
        nodes[me.id] = me
        who = reservation(me.id, s.pid)
        for v in order_for_start([NodeView.of(n) for n in nodes.values()], k, s.rss)[:ASKED]:
            n = nodes[v.id]
            if n.id == me.id:
                if self.mover.sampler.mine().fits(s.rss + targets.config.mem_reserve):
                    return n
                continue
            live = await targets.ask(n, who)
            if live is not None and live.fits(s.rss) and not (await targets.reserve(n, who, k, s.rss))[0]:
                return n
        return None

    async def _bring(self, s: GuestState, to: NodeInfo) -> None:
        try:
            timeout = self.mover.targets.config.move_timeout_s
            await self.mover.move(self.mover.subject(s.pid), to, timeout=timeout, reason=f"{to.name} has room for it again")
        except (MigError, OSError) as e:
            wait = self._wait[s.pid] = min(AT_THE_LATEST, 2 * self._wait.get(s.pid, AGAIN / 2))
            self._not_before[s.pid] = time.monotonic() + wait
            why = "; ".join([str(e), *getattr(e, "reasons", [])])
            log.warning("process %d (%s) stays stored, next try in %.0f s: %s", s.pid, s.comm, wait, why)
