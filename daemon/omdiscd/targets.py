"""From what a user or the balancer names to a node, and what speaks against going there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from mig import wire
from mig.config import Config
from mig.economy.policy import Knobs
from mig.economy.price import NodeView
from mig.errors import BadInput
from mig.model import NodeInfo
from mig.trust import links

_ASK = 2.0
"""Seconds in which an asked node must answer."""


class Targets:
    """The pool as this node sees it, with the means to ask its members."""

    def __init__(self, config: Config, nodes: Callable[[], list[NodeInfo]], me: Callable[[], NodeInfo]) -> None:
        self.config, self.nodes, self.me = config, nodes, me
        # every field of Knobs is a key of the configuration
        self.knobs = Knobs(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Knobs)})

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

    async def ask(self, n: NodeInfo, who: str) -> NodeView | None:
        """Its live state, places promised to others than ``who`` included; None when it does not answer."""
        m = await self._request(n, op="info", who=who)
        if m is None or m.get("op") != "info":
            return None
        info = NodeInfo.from_map(m["node"])
        if not info.accepting:
            return None
        return NodeView.of(info, extra_k=float(m["reserved_k"]), extra_mem=int(m["reserved_mem"]))

    async def reserve(self, n: NodeInfo, who: str, k: float, mem: int) -> list[str]:
        """Reserve a place there; returns the reasons when it refuses."""
        m = await self._request(n, op="reserve", who=who, k=k, mem=mem)
        if m is None:
            return [f"{n.name} does not answer"]
        return [] if m.get("ok") else [str(r) for r in m.get("reasons", ())] or [f"{n.name} refuses"]

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
