"""``python -m mig.cell.keeper --conn N --request M``: the keeper of one cell, started by the destination's omdiscd for one move.

It prepares the cell while the process still runs at its source, restores it up to the barrier, and after GO lets it run and stands
between it and its home agent.  When the guest moves on, the keeper is the source of that move (:mod:`mig.cell.host_source`).

Destination's side of the promise "at most one copy runs": the copy stands in a frozen cgroup until GO; everything else (an end of the
connection, an error, any other word) kills it and leaves a tombstone, so that it can never start late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

import msgpack

from mig import logs, paths, wire
from mig.agent import workdir
from mig.agent.watchers import Reply
from mig.cell import agent_link
from mig.cell.agent_link import AgentLink
from mig.cell.arriving import Arriving
from mig.cell.cell import Exited, Stopped
from mig.cell.guest import Guest
from mig.cell.host_source import HostSource
from mig.cell.house import House, cell_cgroup
from mig.cell.keeping import KeeperBase
from mig.cell.positions import Positions
from mig.cell.proxies import Proxies
from mig.cell.stored import Stored
from mig.criu.agreed import Agreement, objections, warm_up
from mig.errors import CannotMove, MigError, MoveFailed
from mig.homefs import mount
from mig.kernel import libc, priority
from mig.kernel.cgroup import leave_unit
from mig.kernel.page_out import page_out
from mig.migration import faults
from mig.migration.faults import Fault, reach
from mig.migration.journal import ABORTED, RUNNING
from mig.migration.machine import Outcome, Step
from mig.migration.peer import Destination, receive_images
from mig.migration.runner import Runner, as_error, describe
from mig.model import NodeInfo
from mig.trust import links

log = logging.getLogger(__name__)


class Keeper(KeeperBase):
    """Owner of one cell."""

    def __init__(self, conn: socket.socket, request: dict[str, Any], node: NodeInfo) -> None:
        super().__init__(conn, request, node)
        self.mode = str(request["mode"])
        self.agreed = Agreement.of(self.facts, root_allowed=bool(request.get("root_allowed")))
        self.house: House | None = None
        self.proxies = Proxies(self.facts.externals, self.mode)
        self.guest: Guest | None = None
        self.memory = Arriving(request.get("memory"), self.row, self.over, self._memory_whole)
        self.positions: Positions | None = None
        self._clocks = (0, 0)
        self._moving: Runner | None = None
        self._shelved = False  # frozen by order: this node has left the pool, and nobody took the guest
        self._before = "running"
        self.holding = False

    # -- preparing: before the loop that serves, because the cell is forked ----------------------------------------------------

    def prepare(self) -> None:
        """Everything that can be done while the process still runs at its source; raises :class:`MigError`."""
        self._begin()
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        warm_up()
        self.work = workdir.make(self.mid, "destination", self.facts.rss)
        asyncio.run(self._connect_home())
        server = self.request["files"]
        token = bytes(self.request["token"])
        files = mount.connect(str(server[0]), int(server[1]), token, dial=self._dial) if self.mode == "remote" else None
        self.memory.start(self.work / "img", cell_cgroup(self.mid))
        self.house = House(self.mid, self.mode, self.facts, self.work, files, self.proxies, self._clocks)

    async def _connect_home(self) -> None:
        """Connect to the agent: one link, and one connection for each external."""
        await reach(Fault.BEFORE_PREPARE)
        try:
            self.agent = AgentLink(await agent_link.connect(self.home, self.request, kind="keeper"))
            self._clocks = await self.agent.compare_clocks()
            for e in self.facts.externals:
                self.proxies.connected(e, await agent_link.connect(self.home, self.request, kind="channel", id=e.id))
            if self.mode == "home":
                await self._ask_home()
        except (OSError, EOFError, TimeoutError) as e:
            why = f"{self.node.name} cannot reach the home agent at {self.request['agent'][0]}: {describe(e)}"
            raise MigError(why, hint="is the network between the nodes cut one way?") from e

    async def _ask_home(self) -> None:
        """The real ends of what was proxied, and who the process was when it left: asked of the agent, as a host could say anything."""
        assert self.agent is not None
        m = await self.agent.talk("ends?")
        self.proxies.take_real_ends(int(m["pid"]), {int(k): int(v) for k, v in m["fds"].items()})
        uids, gids = (frozenset(int(i) for i in m[k]) for k in ("uids", "gids"))
        self.agreed = dataclasses.replace(self.agreed, uids=uids, gids=gids, root_allowed=0 in uids)

    def _dial(self, addr: str, port: int) -> socket.socket:
        return links.dial(self.home.id, addr, port, lasting=True)

    # -- the move --------------------------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        """Say prepared, and restore the guest up to the barrier; it runs on when the source says so."""
        assert self.house is not None and self.work is not None
        cell = self.house.cell
        await wire.asend(self.conn, op="prepared", took_ms=round(self.house.took_ms, 1), no_pager=self.memory.no_pager)
        head = self._due(await wire.arecv(self.conn), "images")
        t0 = time.monotonic()
        priority.group_high(cell.processes())
        await receive_images(self.conn, head, str(self.work / "img"))
        t1 = time.monotonic()
        await self._as_agreed()
        t2 = time.monotonic()
        await reach(Fault.BEFORE_RESTORE)
        rest = {int(k): bytes(v) for k, v in head.get("rest", {}).items()}
        lazy = await self.memory.lay_out(head.get("memory"), self._memory_lost)
        await cell.restore(self.proxies.settle(rest, await self._busy()), lazy=lazy)
        await self.memory.restored()
        cell.guest_cgroup.freeze()  # the barrier: guest and CRIU stand still together, whatever dies now
        self.guest = Guest(cell)
        self.positions = Positions(self.facts.shared_files, self.guest.pids())
        self.proxies.start(self.guest, cell.tty_master)  # the terminal is as CRIU set it; nothing flows before home attaches
        await reach(Fault.AT_BARRIER)
        await wire.asend(self.conn, op="ready", images_ms=round((t1 - t0) * 1e3, 1), restore_ms=round((time.monotonic() - t2) * 1e3, 1))
        word = await wire.arecv(self.conn)
        if word.get("op") == "fill":
            word = await self._fill()
        self._due(word, "go")
        await reach(Fault.BEFORE_RUNNING)
        self.journal.write(RUNNING)  # accepted: from here on only its own end stops the guest
        cell.guest_cgroup.thaw()
        await self.memory.push()
        await cell.release()
        await self._answer_go(self.guest.pid, self.guest.pids)

    async def _fill(self) -> dict[str, Any]:
        """Fetch all memory while the copy stands at the barrier; returns the source's next word, which may come before that."""
        word = asyncio.ensure_future(wire.arecv(self.conn))
        if await self.memory.fill(word):
            await wire.asend(self.conn, op="filled")
        return await word

    async def _as_agreed(self) -> None:
        """Raises :class:`MigError` when the images are not what was admitted: then CRIU does not see them."""
        assert self.work is not None
        began = time.monotonic()
        reasons = objections(self.work / "img", self.agreed)
        if self.mode == "home" and not reasons and not self.agreed.root_allowed:
            assert self.agent is not None
            reasons = await self.agent.refused(self.work / "img")
        log.info("images looked at in %.1f ms", (time.monotonic() - began) * 1e3)
        if reasons:
            raise MigError(f"{self.node.name} does not restore what it was sent: it is not what was agreed", reasons=reasons)

    def _memory_whole(self, report: dict[str, Any]) -> None:
        self._tasks.spawn(self.tell_agent("memory", **report))

    def _memory_lost(self, why: str) -> None:
        """What has not arrived never will: a guest that went on would read zeros, so it ends."""
        if self.over.is_set() or self.house is None:
            return
        if self.row.state == "moving" and not self.row.host_pid:
            log.error("before the resume: %s", why)
            self.house.end()  # the restore, or the barrier, ends with it, and the move is given up
            self.conn.close()
            return
        log.error("memory is lost: %s; the guest is ended", why)
        self._tasks.spawn(self._end_lost(why))

    async def _end_lost(self, why: str) -> None:
        await self.tell_agent("lost", why=why)
        await self.watchers.event(
            t=time.time(), kind="lost", pid=self.facts.pid, comm=self.facts.comm, home=self.home.name, outcome="lost", reason=why
        )
        self.over.set()

    async def _busy(self) -> list[int]:
        """At home: outputs of which the agent still holds bytes that a slow reader has not taken."""
        if self.mode != "home":
            return []
        assert self.agent is not None
        return [int(i) for i in (await self.agent.talk("busy?"))["busy"]]

    def _end_copy(self) -> None:
        if self.house is not None:
            self.house.end()

    # -- the guest's life ------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        assert self.guest is not None and self.house is not None
        self.row.state, self.row.host_pid, self.row.since = "running", self.guest.pid, time.time()
        self.row.hold_until = self.row.since + float(self.request.get("hold_s") or 0)
        await self.tell_agent("running", host_pid=self.guest.pid, proxied=sorted(self.proxies.proxied))
        self._tasks.spawn(self._read_agent())
        self.memory.news()  # what was fetched before it ran
        self.watchers.start()
        self._tasks.spawn(self._guest_events())
        self._tasks.spawn(self._source_knows())
        self._tasks.spawn(self._report())
        await self.over.wait()
        self.house.end()

    async def _guest_events(self) -> None:
        assert self.house is not None
        async for e in self.house.cell.events():
            match e:
                case Exited() if self.over.is_set() or self.holding:
                    return  # it has moved on: what ended is the frozen copy that it left
                case Exited(status=status):
                    await self.proxies.finish()
                    at = self.positions.read() if self.positions is not None else {}
                    await self.tell_agent("exit", status=status, positions=at)
                    self.over.set()
                    return
                case Stopped(sig=sig):
                    self.row.state = "stopped"
                    await self.tell_agent("stopped", sig=sig)
                case _:
                    self.row.state = "running"
                    await self.tell_agent("continued")
        self.over.set()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1)
            assert self.guest is not None
            cpu, self.row.rss = self.guest.usage()
            self.row.cpu_s = self.facts.cpu_s + cpu
            memory = {"arriving": self.row.arriving, "waiting_for": self.row.waiting_for, "waiting_s": self.row.waiting_s}
            await self.tell_agent("stats", cpu_s=self.row.cpu_s, rss=self.row.rss, **memory)

    # -- the home agent --------------------------------------------------------------------------------------------------------

    async def _read_agent(self) -> None:
        assert self.agent is not None and self.guest is not None and self.house is not None
        try:
            while True:
                m = await self.agent.receive()
                match m.get("op"):
                    case "signal":
                        self.guest.signal(int(m["sig"]), group=bool(m["group"]))
                    case "kill":
                        self.over.set()
                    case "foreground":
                        await self.house.cell.set_foreground(bool(m["on"]))
                    case "move":
                        self._tasks.spawn(self._move(m))
        except (EOFError, OSError) as e:
            if self.over.is_set() or self.holding:
                self.over.set()
                return
            # without its home agent the guest has no files, terminal or exit status any more
            log.error("the home agent is gone (%s): the guest is ended", e or type(e).__name__)
            await self.watchers.event(
                t=time.time(), kind="lost", pid=self.facts.pid, comm=self.facts.comm, home=self.home.name, outcome="lost",
                reason=f"the home agent on {self.home.name} is gone; its guest was ended",
            )  # fmt: skip
            self.over.set()

    async def _order(self, m: dict[str, Any], reply: Reply) -> None:
        """Orders of this node's omdiscd: to stand still, to go on."""
        if m.get("op") in ("shelve", "unshelve"):
            await self._shelve(m.get("op") == "shelve")
            await reply({"op": "shelved", "id": m.get("id"), "on": self._shelved})
            return
        await super()._order(m, reply)

    async def _shelve(self, on: bool) -> None:
        """Freeze the guest where it is, or let it go on.  Not in the middle of a move, which has its own freeze."""
        assert self.house is not None
        if self._moving is not None or self.over.is_set() or on == self._shelved:
            return
        group = self.house.cell.guest_cgroup
        group.freeze() if on else group.thaw()
        if on:
            self._before = self.row.state
        self._shelved = on
        await self._tell_shelved()
        if on and self.memory.done:
            await asyncio.to_thread(self._page_out)

    def _page_out(self) -> None:
        """Its memory is its host's again, as far as there is swap space; it comes back page by page when the guest goes on."""
        assert self.guest is not None
        for pid in self.guest.pids():
            with contextlib.suppress(ProcessLookupError):
                page_out(pid)

    async def _tell_shelved(self) -> None:
        self.row.state = "frozen" if self._shelved else self._before
        await self.watchers.changed()
        await self.tell_agent("shelved", on=self._shelved, state=self.row.state)

    # -- moving on -------------------------------------------------------------------------------------------------------------

    async def _move(self, m: dict[str, Any]) -> None:
        """The agent wants the guest elsewhere: be the source of that move."""
        to = NodeInfo.from_map(m["to"])
        what = f"{self.facts.comm} ({self.facts.pid}) could not be moved to {to.name}"
        if self._moving is not None:
            await self._not_moved(CannotMove(f"{what}: it is just being moved"))
            return
        timeout = float(m.get("timeout") or 0)
        if not self.memory.done:  # one that moves on serves from one place only
            self._progress("its memory is still arriving")
            if not await self.memory.wait(timeout):
                await self._not_moved(MoveFailed(f"{what}: its memory has not all arrived here yet; still running on {self.node.name}"))
                return
        began = time.monotonic()
        self.row.state = "moving"
        await self.watchers.changed()  # omdiscd gives it the CPU that the move takes, also where the host is busy
        mode, limit_bps = m.get("memory", ("auto", 0))
        source = HostSource(self, Destination(to), m["request"], (str(mode), int(limit_bps)))
        runner = self._moving = Runner(source, list(Step), progress=self._progress, doubt=self._doubt)
        try:
            result = await runner.run(timeout)
        finally:
            self._moving = None
        await source.settled(result.outcome)
        if result.outcome is not Outcome.ARRIVED:
            await source.close()
            self.row.state = "running"
            if self._shelved:  # the roll-back may have thawed it
                source.group.freeze()
                await self._tell_shelved()
            await self.watchers.changed()
            await self._not_moved(as_error(result, what, self.node.name))
            return
        pause = round((result.ended_at - result.frozen_at) * 1e3, 1)
        log.info("moved on to %s: %s", to.name, {k: round(v * 1e3, 1) for k, v in result.spent.items()})
        moved = {"pause_ms": pause} | source.moved()
        await self.tell_agent("moved", ok=True, result=moved)
        if not m["request"].get("store"):
            total = round((time.monotonic() - began) * 1e3, 1)
            await self.watchers.tell(op="costs", total_ms=total, rss=self.row.rss, **moved)
        await self._hold(source)
        self.over.set()

    async def _hold(self, source: HostSource) -> None:
        """The guest has gone on: its frozen copy here holds the memory until the next host has all of it."""
        self.holding = True
        self.row.state = "holding"
        self.proxies.close()
        try:
            moved = await source.carrier.serve()
            await self.tell_agent("memory", bytes=source.bytes + moved.bytes)
        except MigError as e:
            log.error("%s", e.message)
        await source.close()

    def close(self) -> None:
        """Leave nothing behind but the journal."""
        self.proxies.close()
        if self.positions is not None:
            self.positions.close()
        self.memory.close()
        if self.house is not None:
            self.house.close()
        super().close()


def main() -> int:
    """Run one keeper from the request to the end of its guest's stay."""
    p = argparse.ArgumentParser(prog="mig-keeper", description="keeper of one guest's cell (started by omdiscd)")
    p.add_argument("--conn", type=int, required=True, help="descriptor of the source's connection")
    p.add_argument("--request", type=int, required=True, help="descriptor with the prepare message")
    a = p.parse_args()
    faults.enabled = os.environ.get("MIG_FAULTS") == "1"
    leave_unit()
    priority.ordinary()
    paths.make_run_dirs()
    with os.fdopen(a.request, "rb") as f:
        f.seek(0)
        request = msgpack.unpackb(f.read(), raw=False, strict_map_key=False)
    logs.to_stderr(who=f"keeper {request['facts']['pid']}")
    logs.about(str(request["mid"]))
    conn = socket.socket(fileno=a.conn)
    os.set_inheritable(a.conn, False)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    links.start()  # before the mount namespace of our own, which it would keep alive
    node = NodeInfo.from_map(json.loads(os.environ["MIG_NODE"]))
    if request.get("store"):
        asyncio.run(Stored(conn, request, node).serve())
        return 0
    keeper = Keeper(conn, request, node)
    try:
        keeper.prepare()
    except Exception as e:
        log.exception("the cell could not be prepared")
        error = e if isinstance(e, MigError) else MigError(f"{keeper.node.name} could not prepare a cell: {e}")
        keeper.journal.write(ABORTED)
        conn.setblocking(True)
        with contextlib.suppress(OSError):
            wire.send(conn, op="failed", error=error.to_wire())
        keeper.close()
        return error.exit_code
    asyncio.run(keeper.serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
