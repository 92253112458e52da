"""Where a new job starts (``mosrun -b``, ``-j``): asked before its first instruction runs, one after the other, so that a burst spreads.

What was just started here is counted although no sample shows it yet; what goes elsewhere is reserved there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from mig.economy import manager
from mig.economy.judge import Candidate
from mig.economy.policies import Situation
from mig.economy.price import NodeView
from mig.errors import CannotMove
from mig.model import NodeInfo
from omdiscd.balancer import Balancer
from omdiscd.peers import reservation
from omdiscd.places import SETTLED, Place

START_MEM = 50 << 20
"""Bytes that a job is guessed to need before it runs."""
_PATIENCE = 5.0
"""Seconds for which a job waits at home for a better node that is just busy with other starts."""
_AGAIN = 0.1


class Starts:
    """Chooses."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer, self.targets, self.sampler = balancer, balancer.targets, balancer.sampler
        self._here: list[Place] = []
        self._one = asyncio.Lock()

    def here(self) -> NodeView:
        """This node with what was just started here."""
        now = time.monotonic()
        self._here = [p for p in self._here if p.until > now]
        k = sum(max(0.0, p.k - self.sampler.table.runnable_of(p.pid)) for p in self._here)
        me = self.sampler.mine()
        return replace(me, k=max(me.k, self.sampler.runnable) + k)

    async def choose(self, pid: int, names: list[str]) -> NodeInfo | None:
        """The node for the job ``pid``, where its place is now reserved; None: here.  ``names``: only these; empty: any.

        Raises :class:`CannotMove` when none of ``names`` takes it.
        """
        deadline = time.monotonic() + _PATIENCE
        to, wait = None, True
        while wait and time.monotonic() < deadline:
            async with self._one:
                # a crowd that was before us may have used up our patience: then it starts here
                if time.monotonic() < deadline:
                    to, wait = await self._try(pid, names)
            if wait:
                await asyncio.sleep(_AGAIN)
        me = self.targets.me()
        if to is not None and to.id != me.id:
            return to
        if names and me.name not in names:
            reasons = [r for n in names for r in self.targets.against(self.targets.find(n))]
            raise CannotMove(f"none of {', '.join(names)} takes the job now", reasons=reasons)
        self._here.append(Place(time.monotonic() + SETTLED * self.sampler.config.sample_s, 1.0, START_MEM, True, pid))
        return None

    async def _try(self, pid: int, names: list[str]) -> tuple[NodeInfo | None, bool]:
        """The best node that takes it, and whether a better one would do so in a moment."""
        nodes = {n.id: n for n in self.targets.open() if not names or n.name in names}
        me, here = self.targets.me(), self.here()
        s = Situation(here, [v for v in self.targets.views() if v.id in nodes], (), self.targets.knobs, len(self.targets.nodes()))
        who = reservation(me.id, pid)
        job = Candidate(pid, "", 0.0, START_MEM, placed=True)
        decision = manager.Dialogue(manager.start(self.balancer.policy, job, s))
        while (ask := decision.step) is not None:
            decision.answer(await self.targets.ask(nodes[ask.node], who))
        for v in decision.result or ():
            if v.id == me.id:
                if not names or me.name in names:
                    return None, False
                continue
            refused, wait = await self.targets.reserve(nodes[v.id], who, 1.0, START_MEM, start=True)
            if not refused:
                return nodes[v.id], False
            if wait:
                return None, True
        return None, False
