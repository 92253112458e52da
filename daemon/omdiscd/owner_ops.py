"""The control socket's operations of the adaptive pool: tell the state, block or empty a node, bring our own guests home."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mig.errors import BadInput, CannotMove, MigError, NotPermitted
from mig.model import NodeInfo
from omdiscd import steered
from omdiscd.by_hand import ByHand
from omdiscd.control import Call, Handler
from omdiscd.evict import Evictor
from omdiscd.guests import Link
from omdiscd.owner import Owner

_BRINGING = 3
"""Guests that come home at the same time."""


class OwnerOperations:
    """The handlers; :meth:`table` maps them to their names on the wire."""

    def __init__(self, owner: Owner, evictor: Evictor, by_hand: ByHand, keep_home: Callable[[], None]) -> None:
        """``keep_home`` is told to let none of our own processes leave by itself (openMosix's lstay), before they are brought home."""
        self.owner, self.evictor, self.by_hand, self._keep_home = owner, evictor, by_hand, keep_home

    def table(self) -> dict[str, Handler]:
        """Handlers by op."""
        return {"pool": self.pool, "block": self.block, "noblock": self.noblock, "expel": self.expel, "bring": self.bring}

    async def pool(self, call: Call) -> dict[str, Any]:
        """``{}`` -> ``{pool}``: this node's membership, and who is logged in.  Others than root see only that somebody is."""
        report = self.owner.report()
        if call.caller.uid != 0:
            report["sessions"] = []
            report["why"] = report["why_not"]
        return {"pool": report}

    async def block(self, call: Call) -> dict[str, Any]:
        """``{node?}``: no new guests from now on; ``node``: there."""
        _only_root(call, "block a node")
        if (n := self._elsewhere(call)) is not None:
            return await steered.ask(n, "block", call.item)
        self.by_hand.block()
        return {}

    async def noblock(self, call: Call) -> dict[str, Any]:
        """``{node?}`` -> ``{accepting, why_not}``: the administrator has nothing against guests any more; its owner still may have."""
        _only_root(call, "unblock a node")
        n = self._elsewhere(call)
        return await steered.ask(n, "noblock", call.item) if n is not None else self.by_hand.noblock()

    async def expel(self, call: Call) -> dict[str, Any]:
        """``{fast, node?}`` -> see :meth:`ByHand.expel`."""
        _only_root(call, "expel guests")
        fast, n = bool(call.request.get("fast")), self._elsewhere(call)
        return await (steered.ask(n, "expel", call.item, fast=fast) if n is not None else self.by_hand.expel(call.item, fast=fast))

    def _elsewhere(self, call: Call) -> NodeInfo | None:
        """The other node that is meant; None: this one."""
        name, targets = call.request.get("node"), self.evictor.targets
        if name in (None, ""):
            return None
        n = targets.find(str(name))
        return None if n.id == targets.me().id else n

    async def bring(self, call: Call) -> dict[str, Any]:
        """``{}`` -> items ``{pid, comm, from, outcome, reasons?, left}``, then ``{moved}``: all guests whose home is here come home."""
        _only_root(call, "bring guests home")
        self._keep_home()
        mover = self.evictor.mover
        me = mover.targets.me().name
        away = [a for a in self.owner.guests.agents() if a.state and (a.state.where != me or a.state.state == "stored")]
        left, moved, failures = len(away), 0, list[str]()
        await call.item(left=left)
        turns = asyncio.Semaphore(_BRINGING)
        done: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        tasks = [asyncio.ensure_future(self._bring(a, turns, done)) for a in away]
        try:
            while left:
                item = await done.get()
                left -= 1
                moved += item["outcome"] == "arrived"
                if item["outcome"] == "stays":
                    failures.append(f"{item['pid']} ({item['comm']}) on {item['from']}: {'; '.join(item['reasons'])}")
                await call.item(**item, left=left)
        finally:
            for t in tasks:
                t.cancel()  # those under way go on at their agents: a move is never undone because nobody waits for it
        if failures:
            raise CannotMove(f"{moved} guests have come home, {len(failures)} could not", reasons=failures)
        return {"moved": moved}

    async def _bring(self, a: Link, turns: asyncio.Semaphore, done: asyncio.Queue[dict[str, Any]]) -> None:
        assert a.state is not None
        mover, s = self.evictor.mover, a.state
        item: dict[str, Any] = {"pid": s.pid, "comm": s.comm, "from": s.where}
        async with turns:
            try:
                subject = mover.subject(s.pid)
                home = await mover.destination(subject, "home")
                await mover.move(subject, home, timeout=mover.targets.config.move_timeout_s, reason="mosctl bring")
                done.put_nowait(item | {"outcome": "arrived"})
            except BadInput:
                done.put_nowait(item | {"outcome": "ended"})  # or it has come home by itself
            except (MigError, OSError) as e:
                done.put_nowait(item | {"outcome": "stays", "reasons": getattr(e, "reasons", []) or [str(e)]})


def _only_root(call: Call, what: str) -> None:
    if call.caller.uid != 0:
        raise NotPermitted(f"only root may {what}")
