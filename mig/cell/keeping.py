"""What every keeper has and does alike, with a cell or without: its row and journal, and what it says to the source that the guest comes
from, to the guest's home agent, and to omdiscd.

:mod:`mig.cell.keeper` adds the cell, :mod:`mig.cell.stored` images on disk in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mig import paths, wire
from mig.agent.watchers import Reply, Watchers
from mig.cell.agent_link import AgentLink
from mig.errors import BadInput, MigError
from mig.kernel import pidfd, procfs
from mig.migration.faults import Fault, reach
from mig.migration.journal import ABORTED, PREPARED, Journal
from mig.model import GuestState, NodeInfo, ProcessFacts
from mig.tasks import Tasks
from mig.trust import links

log = logging.getLogger(__name__)

_FOLLOW_S = 2.0
"""Seconds between two looks whether home or this node has another address."""


class Aborted(Exception):
    """The move ended before GO; the reason is the message."""


class KeeperBase:
    """Keeper of one guest during one stay.  ``conn``: the source's connection; ``request``: its prepare message; ``node``: this one."""

    def __init__(self, conn: socket.socket, request: dict[str, Any], node: NodeInfo) -> None:
        self.conn, self.request, self.node = conn, request, node
        self.mid, self.epoch = str(request["mid"]), int(request["epoch"])
        self.home = NodeInfo.from_map(request["home"])
        self.facts = ProcessFacts.from_map(request["facts"])
        self.journal = Journal(self.mid, "destination")
        self.work: Path | None = None
        self.agent: AgentLink | None = None
        self.over = asyncio.Event()
        self._told_to_abort = False
        self._tasks = Tasks()
        self.row = GuestState(
            role="keeper", pid=self.facts.pid, home=self.home.name, where=node.name, state="moving", uid=self.facts.uid,
            comm=self.facts.comm, start=self.facts.start, since=time.time(), helper=os.getpid(), rss=self.facts.rss, cpu_s=self.facts.cpu_s,
            nmigs=int(request.get("nmigs", 1)),
        )  # fmt: skip
        self.watchers = Watchers(paths.KEEPERS / f"{self.home.id}-{self.facts.pid}-{self.epoch}.sock", lambda: self.row, self._order)

    async def serve(self) -> None:
        """Follow the source up to GO or abort; then look after the guest until it ends or has moved on."""
        self.conn.setblocking(False)
        self._tasks.spawn(self._follow_addresses())
        try:
            await self._take_in()
        except Exception as e:  # whatever it is: what was not accepted must never run
            await self._abort(e)
            return
        await self._keep()
        self.close()

    async def _take_in(self) -> None:
        """Do what the source says, up to RUNNING in the journal and the answer to GO.  What it raises ends the move here."""
        raise NotImplementedError

    async def _keep(self) -> None:
        """The guest is ours: returns when it has ended or moved on."""
        raise NotImplementedError

    def _end_copy(self) -> None:
        """The move is given up: kill what could run."""

    # -- the source ------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The first record of the journal: which process owns the copy."""
        me = pidfd.identity(os.getpid())
        self.journal.write(PREPARED, keeper=me.pid, start=me.start, boot=me.boot)

    def _due(self, m: dict[str, Any], op: str) -> dict[str, Any]:
        """The source's word ``m``, if it is the one that is due; raises :class:`Aborted`."""
        if m.get("op") != op:
            self._told_to_abort = m.get("op") == "abort"
            raise Aborted(f"the source said {m.get('op')!r}")
        return m

    async def _answer_go(self, host_pid: int = 0, guest: Callable[[], Iterable[int]] = list) -> None:
        """Say that the guest is ours now, in which process, and what CPU the move has cost here, without its own (``guest``)."""
        try:
            await reach(Fault.AFTER_GO)
            cpu = procfs.cpu_s(os.getpid(), but=guest())
            await wire.asend(self.conn, op="running", host_pid=host_pid, cpu_ms=round(cpu * 1e3))
        except Exception as e:  # whatever it is, we have accepted: the source asks our omdiscd for the answer that it did not get
            log.warning("the answer to GO is lost: %s", e)
            self.conn.close()

    async def _source_knows(self) -> None:
        """Once the source has our answer nobody asks about this move any more, and its journal may go."""
        with contextlib.suppress(OSError, EOFError):
            if (await wire.arecv(self.conn)).get("op") == "known":
                self.journal.forget()

    async def _abort(self, why: BaseException) -> None:
        """Kill the copy, then leave the tombstone: in this order, so that ``aborted`` is only ever said of a copy that is gone."""
        log.info("aborted: %s", why, exc_info=None if isinstance(why, (Aborted, MigError, EOFError)) else why)
        self._end_copy()
        if self._told_to_abort:
            self.journal.forget()  # its source knows, and has not committed: nobody will ask
        else:
            self.journal.write(ABORTED)
        with contextlib.suppress(OSError):
            if not isinstance(why, (Aborted, EOFError, OSError)):
                error = why if isinstance(why, MigError) else MigError(f"{type(why).__name__}: {why}")
                await wire.asend(self.conn, op="failed", error=error.to_wire())
            await wire.asend(self.conn, op="aborted")
        self.close()

    async def _follow_addresses(self) -> None:
        """Our connections to the home agent are made anew where home is now; and where we are now may be another place, too."""
        while True:
            await asyncio.sleep(_FOLLOW_S)
            links.follow()
            self.node.addr = links.addresses().of(self.node.id) or self.node.addr

    # -- the home agent and omdiscd --------------------------------------------------------------------------------------------

    async def tell_agent(self, op: str, **m: Any) -> None:
        """Send one message; a lost agent is noticed by whoever reads from it."""
        assert self.agent is not None
        await self.agent.tell(op, **m)

    async def ask_agent(self, op: str, answer: str, **m: Any) -> dict[str, Any]:
        """Send a question, wait for the message named ``answer``."""
        assert self.agent is not None
        return await self.agent.ask(op, answer, **m)

    async def _order(self, m: dict[str, Any], reply: Reply) -> None:
        """An order of this node's omdiscd.  Moves go through the home agent, which coordinates all of its guest."""
        await reply({"op": "failed", "id": m.get("id"), "error": BadInput("orders go to the home agent").to_wire()})

    # -- as the source of the next move ----------------------------------------------------------------------------------------

    def _progress(self, step: str) -> None:
        self._tasks.spawn(self.tell_agent("progress", step=step))

    def _doubt(self, error: str) -> None:
        self.row.state = "in-doubt"
        self._tasks.spawn(self.tell_agent("doubt", error=error))

    async def _not_moved(self, error: MigError) -> None:
        await self.tell_agent("moved", ok=False, error=error.to_wire())

    def close(self) -> None:
        """Leave nothing behind but the journal."""
        self._tasks.cancel()
        self.watchers.close()
        if self.agent is not None:
            self.agent.close()
        self.conn.close()
        if self.work is not None:
            shutil.rmtree(self.work, ignore_errors=True)
