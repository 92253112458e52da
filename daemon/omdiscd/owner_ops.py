"""The control socket's operations of the adaptive pool: tell the state, empty the node, bring our own guests home."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mig.errors import BadInput, CannotMove, MigError, NotPermitted
from omdiscd.control import Call, Handler
from omdiscd.evict import ADMINISTRATOR, Evictor
from omdiscd.guests import Link
from omdiscd.owner import Owner

_LOOK = 0.2
_BRINGING = 3
"""Guests that come home at the same time."""


class OwnerOperations:
    """The handlers; :meth:`table` maps them to their names on the wire."""

    def __init__(
        self, owner: Owner, evictor: Evictor, accept: Callable[[bool, str], None], keep_home: Callable[[], None] = lambda: None
    ) -> None:
        """``keep_home`` is told to let none of our own processes leave by itself (openMosix's lstay), before they are brought home."""
        self.owner, self.evictor, self._accept, self._keep_home = owner, evictor, accept, keep_home

    def table(self) -> dict[str, Handler]:
        """Handlers by op."""
        return {"pool": self.pool, "expel": self.expel, "bring": self.bring}

    async def pool(self, call: Call) -> dict[str, Any]:
        """``{}`` -> ``{pool}``: this node's membership, and who is logged in.  Others than root see only that somebody is."""
        report = self.owner.report()
        if call.caller.uid != 0:
            report["sessions"] = []
            report["why"] = report["why_not"]
        return {"pool": report}

    async def expel(self, call: Call) -> dict[str, Any]:
        """``{fast}`` -> items ``{pid, comm, home, outcome, to | reasons, left}``, then ``{moved}``: block, and wait until all have left.

        The node stays blocked, and goes on sending guests away, also if the caller does not wait.  Raises :class:`CannotMove` when some
        stand frozen because nobody took them.
        """
        _only_root(call, "expel guests")
        fast = bool(call.request.get("fast"))
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.evictor.listeners.append(news.put_nowait)
        moved = 0
        frozen: dict[int, dict[str, Any]] = {}
        try:
            self._accept(False, "blocked by its administrator, who expels all guests")
            self.evictor.start(ADMINISTRATOR, "its administrator expels all guests", fast=fast)
            await call.item(left=self.evictor.running())
            while not news.empty() or any(k.state and k.state.host_pid not in frozen for k in self.evictor.here()):
                try:
                    item = await asyncio.wait_for(news.get(), _LOOK)
                except TimeoutError:
                    continue
                frozen.pop(item["here"], None)
                if item["outcome"] == "arrived":
                    moved += 1
                else:
                    frozen[item["here"]] = item
                await call.item(**item, left=self.evictor.running())
        finally:
            self.evictor.listeners.remove(news.put_nowait)
        if frozen:
            raise CannotMove(
                f"{moved} guests have left; {len(frozen)} could not and stand frozen here, nothing of them is lost",
                reasons=[f"{i['pid']} ({i['comm']}) of {i['home']}: {'; '.join(i['reasons'])}" for i in frozen.values()],
                hint="they leave as soon as anybody takes them, or go on here after mosctl noblock",
            )
        return {"moved": moved}

    async def bring(self, call: Call) -> dict[str, Any]:
        """``{}`` -> items ``{pid, comm, from, outcome, reasons?, left}``, then ``{moved}``: all guests whose home is here come home."""
        _only_root(call, "bring guests home")
        self._keep_home()
        mover = self.evictor.mover
        me = mover.targets.me().name
        away = [a for a in self.owner.guests.agents() if a.state and a.state.where != me]
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
