"""The keeper of a guest that nobody could take and whose images therefore lie on home's disk, until a node has room for it.

It stands at home, in the place of a cell's keeper: the host that was left is the source of a move to it, and it is the source of the move
that brings the guest back.  So the promise "at most one copy runs" is kept by the same journals: here GO means that the images are the
guest now.  It needs no CPU and no memory but its own.

Signals wait at the home agent meanwhile; SIGKILL ends the guest.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from typing import Any

from mig import wire
from mig.agent import workdir
from mig.cell import agent_link
from mig.cell.agent_link import AgentLink
from mig.cell.keeping import KeeperBase
from mig.criu import images
from mig.errors import CannotMove, MigError
from mig.kernel import pidfd, procfs
from mig.migration.faults import Fault, reach
from mig.migration.journal import ARRIVED, BEGIN, COMMIT, ROLLED_BACK, RUNNING, Journal
from mig.migration.machine import Outcome, Step
from mig.migration.peer import Destination, receive_images
from mig.migration.runner import Runner, as_error, describe
from mig.model import NodeInfo

log = logging.getLogger(__name__)

PLAN = (Step.ASK, Step.SHIP, Step.RESTORE, Step.VERIFY)
"""The guest stands still and is dumped already."""


class Stored(KeeperBase):
    """Takes in one guest's images, and gives them to the node that takes the guest."""

    def __init__(self, conn: socket.socket, request: dict[str, Any], node: NodeInfo) -> None:
        super().__init__(conn, request, node)
        self.rest: dict[int, bytes] = {}
        """Input that the guest had not read, by external."""
        self._moving = False

    @property
    def img(self) -> str:
        """The image directory."""
        assert self.work is not None
        return str(self.work / "img")

    # -- coming ----------------------------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        self._begin()
        self.work = workdir.make_on_disk(self.mid, self.facts.rss)
        try:
            self.agent = AgentLink(await agent_link.connect(self.home, self.request, kind="keeper"))
        except (OSError, EOFError, TimeoutError) as e:
            raise MigError(f"{self.node.name} cannot reach the home agent: {describe(e)}") from e
        await wire.asend(self.conn, op="prepared", took_ms=0.0, no_pager="it is stored")
        head = self._due(await wire.arecv(self.conn), "images")
        await receive_images(self.conn, head, self.img)
        if reasons := await self.agent.refused(self.img):
            raise MigError(f"{self.node.name} does not store what it was sent: it is not what was agreed", reasons=reasons)
        self.rest = {int(k): bytes(v) for k, v in head.get("rest", {}).items()}
        images.forget_sizes(self.img)
        await wire.asend(self.conn, op="ready")
        self._due(await wire.arecv(self.conn), "go")
        await reach(Fault.BEFORE_RUNNING)
        self.journal.write(RUNNING)  # accepted: from here on the images are the guest
        await self._answer_go()

    # -- being there -----------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        self.row.state, self.row.since = "stored", time.time()
        await self.tell_agent("stored")
        self.watchers.start()
        self._tasks.spawn(self._read_agent())
        self._tasks.spawn(self._source_knows())
        await self.over.wait()

    async def _read_agent(self) -> None:
        assert self.agent is not None
        try:
            while not self.over.is_set():
                m = await self.agent.receive()
                if m.get("op") == "move":
                    self._tasks.spawn(self._move(m))
                elif m.get("op") == "kill":
                    self.over.set()
        except (EOFError, OSError) as e:
            if not self.over.is_set():
                log.error("the home agent is gone (%s), and the guest with it", e or type(e).__name__)
            self.over.set()

    # -- going on --------------------------------------------------------------------------------------------------------------

    async def _move(self, m: dict[str, Any]) -> None:
        """The agent wants the guest to go on somewhere: be the source of that move."""
        to = NodeInfo.from_map(m["to"])
        what = f"{self.facts.comm} ({self.facts.pid}) could not be brought to {to.name}"
        if self._moving:
            await self._not_moved(CannotMove(f"{what}: it is just being moved"))
            return
        self._moving, self.row.state = True, "moving"
        timeout = float(m.get("timeout") or 0)
        source = StoredSource(self, Destination(to), m["request"])
        runner = Runner(source, list(PLAN), progress=self._progress, doubt=self._doubt)
        try:
            result = await runner.run(timeout)
        finally:
            self._moving, self.row.state = False, "stored"
        await source.settled(result.outcome)
        if result.outcome is not Outcome.ARRIVED:
            await self._not_moved(as_error(result, what, self.node.name, left="stored"))
            return
        await self.tell_agent("moved", ok=True, result=source.moved())
        self.over.set()


class StoredSource:
    """The actions (:class:`mig.migration.runner.Actions`) of one move of a stored guest to ``dest``."""

    def __init__(self, stored: Stored, dest: Destination, request: dict[str, Any]) -> None:
        self.stored, self.dest, self.request = stored, dest, request
        self.mid = str(request["mid"])
        self.journal = Journal(self.mid, "source")
        self.bytes = 0
        self.cpu_before, self.cpu_there = procfs.cpu_s(os.getpid()), 0.0

    async def do(self, step: Step) -> None:
        """Do one step of the plan."""
        match step:
            case Step.ASK:
                me = pidfd.identity(os.getpid())
                to = dataclasses.asdict(self.dest.node)
                self.journal.write(BEGIN, pid=self.stored.facts.pid, keeper=me.pid, keeper_start=me.start, to=to)
                await self.dest.ask_for_cell(self.request | {"facts": dataclasses.asdict(self.stored.facts), "memory": {}})
                await self.dest.prepared()
            case Step.SHIP:
                await self.stored.ask_agent("expire", "expired")
                self.bytes = await self.dest.ship(self.stored.img, rest=self.stored.rest)
            case Step.RESTORE:
                await self.dest.ready()
            case Step.VERIFY:
                self.dest.verify()
            case _:
                raise AssertionError(step)

    async def undo(self, step: Step) -> None:
        """Undo one step: the images are as they were."""
        if step is Step.ASK:
            await self.dest.abort()

    async def write_commit(self) -> None:
        """The commit: from here on the destination's copy may run."""
        self.journal.write(COMMIT)

    async def send_go(self) -> None:
        """GO and the wait for RUNNING."""
        self.cpu_there = float((await self.dest.go()).get("cpu_ms") or 0) / 1000

    async def ask_destination(self) -> str:
        """What the destination's node says of this move."""
        return await self.dest.ask(self.mid)

    def moved(self) -> dict[str, Any]:
        """What is reported of an arrived move, beside its times."""
        cpu = procfs.cpu_s(os.getpid()) - self.cpu_before + self.cpu_there
        return {"bytes": self.bytes, "rounds": 0, "mode": "full", "mode_why": "it was stored", "cpu_ms": round(cpu * 1e3)}

    async def settled(self, outcome: Outcome) -> None:
        """The outcome is known here: the journal has served."""
        self.journal.write(ARRIVED if outcome is Outcome.ARRIVED else ROLLED_BACK)
        if outcome is Outcome.ARRIVED:
            await self.dest.known(self.mid)
        self.journal.forget()
        self.dest.close()
