"""Orders from node to node: root of one has another block or open itself, or expel its guests.  Whether it does, :class:`ByHand` says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from mig import wire
from mig.errors import MigError, NotPermitted
from mig.model import NodeInfo
from mig.trust import links
from mig.trust.store import Peer
from omdiscd.by_hand import ByHand, Item

log = logging.getLogger(__name__)

ANSWER = 5.0
"""Seconds in which a node begins to do what it is asked."""
_SILENCE = 30
"""Seconds after which a silent node is given up while it expels."""


async def ask(n: NodeInfo, do: str, item: Item, **args: Any) -> dict[str, Any]:
    """Have ``n`` do it: its items go to ``item``, its answer is returned, its errors are raised."""
    try:
        s = await links.connect(n.id, n.addr, n.port, timeout=ANSWER, dead_after=_SILENCE)
    except (OSError, TimeoutError) as e:
        raise MigError(f"{n.name} cannot be reached: {e or 'no answer'}; nothing was changed there") from e
    with s:
        begun = False
        try:
            await wire.asend(s, op="steer", do=do, **args)
            while True:
                async with asyncio.timeout(None if begun else ANSWER):
                    m = await wire.arecv(s)
                if m.get("op") == "item":
                    begun = True
                    await item(**dict(m["item"]))
                elif m.get("op") == "done":
                    break
                else:
                    raise MigError(f"the omdiscd of {n.name} knows no orders of other nodes", hint=f"type it on {n.name}, or update it")
        except (EOFError, OSError, TimeoutError) as e:  # (a client that is gone is a zmq.ZMQError)
            left = "; it stays blocked and goes on sending its guests away" if begun else "; whether it was done is not known"
            raise MigError(f"the connection to {n.name} broke: {str(e) or 'no answer'}{left}", hint="mosctl status shows the nodes") from e
    if not m.get("ok"):
        raise MigError.from_wire(dict(m.get("error") or {}))
    return dict(m["result"])


class Steered:
    """Serves what other nodes ask of this one."""

    def __init__(self, by_hand: ByHand, nodes: Callable[[], list[NodeInfo]]) -> None:
        self.by_hand, self._nodes = by_hand, nodes

    async def serve(self, conn: socket.socket, m: dict[str, Any], peer: Peer) -> None:
        """Carry out ``{op: steer, do, fast?}`` of ``peer``, whose certificate was proved."""

        async def item(**news: Any) -> None:
            await wire.asend(conn, op="item", item=news)

        with contextlib.suppress(OSError):  # whoever asked is gone: what was begun goes on
            try:
                result = await self._do(m, peer, item)
            except MigError as e:
                await wire.asend(conn, op="done", ok=False, error=e.to_wire())
            else:
                await wire.asend(conn, op="done", ok=True, result=result)

    async def _do(self, m: dict[str, Any], peer: Peer, item: Item) -> dict[str, Any]:
        asker = next((n for n in self._nodes() if n.id == peer.id), None)
        if asker is None:
            raise NotPermitted(f"node {peer.id} ({peer.name}) is not known here yet", hint="try again in a moment")
        self.by_hand.permit(asker)
        by = asker.name.strip() or f"node {asker.id}"  # never "", which means somebody here
        do = str(m.get("do"))[:20]
        log.info("root of %s orders: %s", by, do)
        match do:
            case "block":
                self.by_hand.block(by)
                return {}
            case "noblock":
                return self.by_hand.noblock(by)
            case "expel":
                return await self.by_hand.expel(item, fast=m.get("fast") is True, by=by)
        raise MigError(f"this omdiscd knows no order {do!r}")
