"""From what a user or the balancer names to a node, and what speaks against going there."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from mig import wire
from mig.config import Config
from mig.economy.judge import Knobs
from mig.economy.measured import Measured
from mig.economy.price import NodeView
from mig.errors import BadInput
from mig.model import NodeInfo, ProcessFacts
from mig.trust import links

_ASK = 2.0
"""Seconds in which an asked node must answer."""
_UNSEEN = 1.0
"""Seconds that an entry may lag behind what its node does: a sampling interval."""
_REMEMBERED = 10.0
"""Seconds for which our own sends are added to what we hear."""


class Targets:
    """The pool as this node sees it, with the means to ask its members."""

    def __init__(self, config: Config, nodes: Callable[[], list[NodeInfo]], me: Callable[[], NodeInfo]) -> None:
        self.config, self.nodes, self.me = config, nodes, me
        # every field of Knobs is a key of the configuration
        self.measured = Measured(Knobs(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Knobs)}))
        self._sent: dict[int, list[tuple[float, float, int]]] = {}  # by node: when, threads, bytes

    @property
    def knobs(self) -> Knobs:
        """The configuration's, with the costs of moving as measured so far."""
        return self.measured.knobs

    def find(self, text: str) -> NodeInfo:
        """The node with this name, id or address; raises :class:`BadInput` when there is none, or more than one of that name."""
        hits = [n for n in self.nodes() if text in (n.name, str(n.id), n.addr)]
        if not hits:
            known = ", ".join(n.name for n in self.nodes())
            raise BadInput(f"there is no node {text!r}", hint=f"known nodes: {known}")
        if len(hits) > 1:
            raise BadInput(
                f"{text!r} means {len(hits)} nodes", reasons=[f"{n.name}: id {n.id}, address {n.addr}" for n in hits], hint="use the id"
            )
        return hits[0]

    def against(self, n: NodeInfo) -> list[str]:
        """Why nothing can go there now; empty when it can."""
        if n.id == self.me().id:
            return []
        out = []
        if n.state != "alive":
            out.append(
                f"{n.name} is {n.state}: nothing heard of it for {n.age_s:.0f} s" if n.state != "left" else f"{n.name} has left the pool"
            )
        if not n.accepting:
            out.append(f"{n.name} does not accept guests: {n.why_not or 'blocked'}")
        return out

    def open(self) -> list[NodeInfo]:
        """Other nodes to which something can go."""
        me = self.me().id
        return [n for n in self.nodes() if n.id != me and not self.against(n)]

    def views(self) -> list[NodeView]:
        """Open nodes as the price sees them: what gossip told, plus what we have sent there since that was true."""
        now, out = time.monotonic(), []
        for n in self.open():
            since = [x for x in self._sent.get(n.id, ()) if x[0] >= now - n.age_s - _UNSEEN]
            out.append(NodeView.of(n, extra_k=sum(x[1] for x in since), extra_mem=sum(x[2] for x in since)))
        return out

    def note(self, n: NodeInfo, k: float, mem: int) -> None:
        """We are sending ``k`` threads and ``mem`` bytes there."""
        now = time.monotonic()
        self._sent[n.id] = [*(x for x in self._sent.get(n.id, ()) if now - x[0] < _REMEMBERED), (now, k, mem)]

    async def has_room(self, n: NodeInfo, mem: int) -> bool:
        """Whether it has ``mem`` bytes beside what is to stay free, accepting or not; by its gossip where it does not answer."""
        m = await self._request(n, op="info", who="")
        live = m is not None and m.get("op") == "info"
        view = NodeView.of(NodeInfo.from_map(m["node"]), extra_mem=int(m["reserved_mem"])) if m and live else NodeView.of(n)
        return view.fits(mem + self.config.mem_reserve)

    async def ask(self, n: NodeInfo, who: str) -> NodeView | None:
        """Its live state, places promised to others than ``who`` included; None when it does not answer."""
        m = await self._request(n, op="info", who=who)
        if m is None or m.get("op") != "info":
            return None
        info = NodeInfo.from_map(m["node"])
        if not info.accepting:
            return None
        return NodeView.of(info, extra_k=float(m["reserved_k"]), extra_mem=int(m["reserved_mem"]))

    async def reserve(self, n: NodeInfo, who: str, k: float, mem: int, *, start: bool = False) -> tuple[list[str], bool]:
        """Reserve a place there, ``start``: for a job that has not begun.

        Returns the reasons when it refuses, and whether it would take it in a moment.
        """
        m = await self._request(n, op="reserve", who=who, k=k, mem=mem, start=start)
        if m is None:
            return [f"{n.name} does not answer"], False
        if m.get("ok"):
            self.note(n, k, mem)
            return [], False
        return [str(r) for r in m.get("reasons", ())] or [f"{n.name} refuses"], m.get("wait") is True

    async def consider(self, n: NodeInfo, facts: ProcessFacts) -> list[str]:
        """What it has against a process of ours, which is not sent; a node of an older version tells nothing."""
        m = await self._request(n, op="consider", facts=dataclasses.asdict(facts), home=dataclasses.asdict(self.me()))
        if m is None:
            return [f"{n.name} does not answer"]
        return [str(r) for r in m.get("reasons", ())]

    async def events(self, n: NodeInfo, **m: Any) -> dict[str, Any] | None:
        """What happened there, see :func:`omdiscd.pool_events.answer`; None when it does not answer."""
        return await self._request(n, op="events", **m)

    async def _request(self, n: NodeInfo, **m: Any) -> dict[str, Any] | None:
        async def talk() -> dict[str, Any]:
            s = await links.connect(n.id, n.addr, n.port, timeout=_ASK)
            try:
                await wire.asend(s, **m)
                return await wire.arecv(s)
            finally:
                s.close()

        try:
            return await asyncio.wait_for(talk(), _ASK)
        except (OSError, EOFError, TimeoutError):
            return None
