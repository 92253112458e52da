"""What people order for this node: block, noblock, expel; typed here, or sent by root of another node.

A block remembers who ordered it.  What was typed here is not undone from elsewhere: a node's own administrator has the last word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mig import paths
from mig.config import Config
from mig.errors import CannotMove, NotPermitted
from mig.model import NodeInfo
from omdiscd.admission import is_named
from omdiscd.doors import Doors
from omdiscd.events import Events
from omdiscd.evict import ADMINISTRATOR, Evictor

Item = Callable[..., Awaitable[None]]

_LOOK = 0.2
_HERE = "its administrator"


@dataclass(frozen=True)
class Block:
    """``by``: the node whose root ordered it; "": somebody here."""

    by: str = ""

    @property
    def why(self) -> str:
        """As the pool is told."""
        return f"blocked by root of {self.by}" if self.by else f"blocked by {_HERE}"


def remember(block: Block | None) -> None:
    """Keep a block over a restart of omdiscd (not over a boot); None: there is none."""
    f = paths.RUN / "blocked"
    if block is None:
        f.unlink(missing_ok=True)
    else:
        f.write_text(f"{block.by}\n")


def remembered(config: Config) -> Block | None:
    """What an earlier omdiscd of this boot was told, or the configuration says."""
    f = paths.RUN / "blocked"
    if not config.accept:
        return Block()
    return Block(f.read_text().strip()) if f.exists() else None


class ByHand:
    """This node's block.  Methods take ``by``: the name of the node whose root asks, "" for somebody here."""

    def __init__(
        self, config: Config, doors: Doors, evictor: Evictor, events: Events, me: Callable[[], NodeInfo], coming: Callable[[], bool]
    ) -> None:
        """``coming``: whether a guest that was let in before is still on its way."""
        self._coming = coming
        self.config, self.doors, self.evictor, self.events, self._me = config, doors, evictor, events, me
        self.blocked = remembered(config)

    def permit(self, asker: NodeInfo) -> None:
        """Raises :class:`NotPermitted` when root of that node may order nothing here."""
        me, config = self._me().name, self.config
        if not config.remote_orders:
            raise NotPermitted(f"{me} takes no orders of other nodes (remote_orders)", hint=f"type it on {me}")
        if config.allow_from and not any(is_named(asker, who) for who in config.allow_from):
            names = ", ".join(config.allow_from)
            raise NotPermitted(f"{me} takes no orders of {asker.name} (allow_from: {names})", hint=f"type it on {me}")

    def block(self, by: str = "", doing: str = "") -> None:
        """No new guests from now on; a block that was ordered here stays one."""
        block = self.blocked if by and self.blocked is not None and not self.blocked.by else Block(by)
        self.blocked = block
        remember(block)
        why = block.why + doing
        self.doors.set(ADMINISTRATOR, why)
        self.events.add("block", home=self._me().name, reason=f"ordered by root of {by}" if by else why)

    def noblock(self, by: str = "") -> dict[str, Any]:
        """Nothing against guests any more -> ``{accepting, why_not}``: its owner still may have something."""
        me = self._me()
        if by and self.blocked is not None and not self.blocked.by:
            raise NotPermitted(f"{me.name} was blocked on {me.name} itself", hint=f"it is opened there only: mosctl noblock on {me.name}")
        self.blocked = None
        remember(None)
        self.evictor.stop(ADMINISTRATOR)
        self.doors.set(ADMINISTRATOR, "")
        self.events.add("noblock", home=me.name, reason=f"ordered by root of {by}" if by else "")
        return {"accepting": me.accepting, "why_not": me.why_not}

    async def expel(self, item: Item, *, fast: bool, by: str = "") -> dict[str, Any]:
        """Block, and wait until all guests have left: items ``{pid, comm, home, outcome, to | reasons, left}``, then ``{moved}``.

        The node stays blocked, and goes on sending guests away, also if nobody waits.  Raises :class:`CannotMove` when some stand frozen
        because nobody took them.
        """
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.evictor.listeners.append(news.put_nowait)
        moved = 0
        frozen: dict[int, dict[str, Any]] = {}
        try:
            self.block(by, ", who expels all guests")
            self.evictor.start(ADMINISTRATOR, f"{f'root of {by}' if by else _HERE} expels all guests", fast=fast)
            await item(left=self.evictor.running())
            while (
                not news.empty()
                or self._coming()
                or self.evictor.busy
                or any(k.state and k.state.host_pid not in frozen for k in self.evictor.here())
            ):
                try:
                    said = await asyncio.wait_for(news.get(), _LOOK)
                except TimeoutError:
                    continue
                frozen.pop(said["here"], None)
                if said["outcome"] in ("arrived", "stored"):
                    moved += 1
                else:
                    frozen[said["here"]] = said
                await item(**said, left=self.evictor.running())
        finally:
            self.evictor.listeners.remove(news.put_nowait)
        if frozen:
            me = self._me().name
            raise CannotMove(
                f"{moved} guests have left; {len(frozen)} could not and stand frozen on {me}, nothing of them is lost",
                reasons=[f"{i['pid']} ({i['comm']}) of {i['home']}: {'; '.join(i['reasons'])}" for i in frozen.values()],
                hint=f"they leave as soon as anybody takes them, or go on there after mosctl noblock {me}",
            )
        return {"moved": moved}
