"""Home has another address while its guest is away: what keepers connect to is opened there, on the same ports."""

from __future__ import annotations

import asyncio
import logging

from mig.agent.belongings import Belongings
from mig.agent.switchboard import Switchboard
from mig.model import NodeInfo
from mig.trust import links

log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two looks."""


async def follow(node: NodeInfo, board: Switchboard, belongings: Belongings) -> None:
    """Keep ``board`` and the file server where this ``node`` is, and its address as it is."""
    said = ""
    while True:
        await asyncio.sleep(EVERY)
        addr = links.addresses().of(node.id)
        if addr in ("", node.addr):
            continue
        try:
            if board.addr != addr:
                board.listen(addr)
            await belongings.move(addr)
        except (OSError, EOFError, TimeoutError) as e:
            if said != addr:
                log.warning("this node is %s now, but its guest cannot be served there yet: %s", addr, e or type(e).__name__)
                said = addr
            continue
        log.info("this node was %s and is %s now: the guest is served there", node.addr, addr)
        node.addr = addr
