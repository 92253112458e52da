"""The events of all nodes in one stream, for ``mosctl events --pool``: each node is asked by the one where somebody looks.

A node's times are its own clock's; its answer carries what it takes for now, and they are told in ours.  What a node says of other nodes
(that they came or went) is left out: we know that ourselves, and n nodes would say it n times.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mig.model import NodeInfo
from omdiscd.control import Call
from omdiscd.events import Events
from omdiscd.targets import Targets

MOST = 500
"""Events of one answer."""
AT_ONCE = 16
"""Nodes asked at the same time."""
PER_SECOND = 20.0
"""Nodes asked in a second by one who follows: with more nodes than that it takes longer until an event is seen."""


def answer(events: Events, m: dict[str, Any]) -> dict[str, Any]:
    """``{after}`` (our time of the last event that was told) or ``{age}`` (seconds back) -> ``{events, now}``, at most :data:`MOST`."""
    now = time.time()
    after = float(m["after"]) if m.get("after") is not None else now - float(m.get("age", 0))
    return {"op": "events", "events": [e for e in events.since(after) if e.get("kind") != "node"][-MOST:], "now": now}


def told(m: dict[str, Any], node: str, now: float) -> list[dict[str, Any]]:
    """The events of an answer that came at ``now``, in our time and with the node's name."""
    shift = now - float(m["now"])
    return [e | {"node": node, "t": float(e.get("t", 0)) + shift} for e in m["events"] if isinstance(e, dict)]


class PoolEvents:
    """One who looks.  ``since``: our wall time."""

    def __init__(self, targets: Targets, events: Events, since: float) -> None:
        self.targets, self.events, self.since = targets, events, since
        self._after: dict[int, float] = {}  # by node: its own time of the last event that was told
        self._ours = since
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def serve(self, call: Call, *, follow: bool) -> dict[str, Any]:
        """Answer, or stream until the client goes."""
        found, silent = await self.look()
        if not follow:
            return {"events": found, "silent": silent}
        if silent:
            await call.item(silent=silent)
        while True:
            for e in found:
                await call.item(event=e)
            nodes = len(self.targets.nodes())
            await asyncio.sleep(max(1.0, nodes / PER_SECOND))
            await call.item()  # a client that is gone is noticed
            found, _ = await self.look()

    async def look(self) -> tuple[list[dict[str, Any]], list[str]]:
        """What is new everywhere, by time, and the names of nodes that live and did not answer."""
        me = self.targets.me()
        others = [n for n in self.targets.nodes() if n.id != me.id and n.state == "alive"]
        ours = [e | {"node": me.name} for e in self.events.since(self._ours)]
        self._ours = max([self._ours, *(float(e["t"]) for e in ours)])
        answers = await asyncio.gather(*(self._ask(n) for n in others))
        silent = [n.name for n, a in zip(others, answers, strict=True) if a is None]
        found = [*ours, *(e for a in answers for e in a or ())]
        return sorted(found, key=lambda e: float(e["t"])), silent

    async def _ask(self, n: NodeInfo) -> list[dict[str, Any]] | None:
        after = self._after.get(n.id)
        async with self._slots:
            age = {"age": time.time() - self.since} if after is None else {"after": after}
            m = await self.targets.events(n, **age)
        if m is None or m.get("op") != "events":
            return None
        times = [float(e.get("t", 0)) for e in m["events"] if isinstance(e, dict)]
        self._after[n.id] = max([after if after is not None else float(m["now"]) - age.get("age", 0.0), *times])
        return told(m, n.name, time.time())
