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
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from mig import logs, paths, wire
from mig.agent import workdir
from mig.agent.watchers import Reply, Watchers
from mig.cell import agent_link
from mig.cell.agent_link import AgentLink
from mig.cell.cell import Exited, Stopped
from mig.cell.guest import Guest
from mig.cell.host_source import HostSource
from mig.cell.house import House, cell_cgroup
from mig.cell.positions import Positions
from mig.cell.proxies import Proxies
from mig.cell.stored import Stored
from mig.criu import features
from mig.criu.agreed import Agreement, objections, warm_up
from mig.errors import BadInput, CannotMove, MigError, MoveFailed
from mig.homefs import mount
from mig.kernel import libc, pidfd, priority, procfs
from mig.kernel.cgroup import leave_unit
from mig.kernel.page_out import page_out
from mig.memory.pager_link import PagerLink
from mig.migration import faults
from mig.migration.faults import Fault, reach
from mig.migration.journal import ABORTED, PREPARED, RUNNING, Journal
from mig.migration.machine import Outcome, Step
from mig.migration.peer import Destination, receive_images
from mig.migration.runner import Runner, as_error, describe
from mig.model import GuestState, NodeInfo, ProcessFacts
from mig.tasks import Tasks
from mig.trust import links

log = logging.getLogger(__name__)


_LOOKS, _MOST_LOOKS, _QUICK_NS = 5, 30, 2_000_000
"""Questions about home's clocks: at least, at most, and the nanoseconds for an answer that is exact enough."""


class Aborted(Exception):
    """The move ended before GO; the reason is the message."""


class Keeper:
    """Owner of one cell."""

    def __init__(self, conn: socket.socket, request: dict[str, Any], node: NodeInfo) -> None:
        self.conn, self.request, self.node = conn, request, node
        self.mid, self.epoch, self.mode = str(request["mid"]), int(request["epoch"]), str(request["mode"])
        self.home = NodeInfo.from_map(request["home"])
        self.facts = ProcessFacts.from_map(request["facts"])
        self.agreed = Agreement.of(self.facts, root_allowed=bool(request.get("root_allowed")))
        self.journal = Journal(self.mid, "destination")
        self.work: Path | None = None
        self.agent: AgentLink | None = None
        self.house: House | None = None
        self.proxies = Proxies(self.facts.externals, self.mode)
        self.guest: Guest | None = None
        self.pager: PagerLink | None = None
        self._no_pager = ""
        self._filled = False  # all memory was fetched before GO
        self._told_whole = False
        self.positions: Positions | None = None
        self.over = asyncio.Event()
        self._clocks = (0, 0)
        self._tasks = Tasks()
        self._moving: Runner | None = None
        self._shelved = False  # frozen by order: this node has left the pool, and nobody took the guest
        self._before = "running"
        self._told_to_abort = False
        self.holding = False
        self.row = GuestState(
            role="keeper", pid=self.facts.pid, home=self.home.name, where=node.name, state="moving", uid=self.facts.uid,
            comm=self.facts.comm, start=self.facts.start, since=time.time(), helper=os.getpid(), rss=self.facts.rss, cpu_s=self.facts.cpu_s,
            nmigs=int(request.get("nmigs", 1)),
        )  # fmt: skip
        self.watchers = Watchers(paths.KEEPERS / f"{self.home.id}-{self.facts.pid}-{self.epoch}.sock", lambda: self.row, self._order)

    # -- preparing: before the loop that serves, because the cell is forked ----------------------------------------------------

    def prepare(self) -> None:
        """Everything that can be done while the process still runs at its source; raises :class:`MigError`."""
        me = pidfd.identity(os.getpid())
        self.journal.write(PREPARED, keeper=me.pid, start=me.start, boot=me.boot)
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        warm_up()
        self.work = workdir.make(self.mid, "destination", self.facts.rss)
        asyncio.run(self._connect_home())
        server = self.request["files"]
        token = bytes(self.request["token"])
        files = mount.connect(str(server[0]), int(server[1]), token, dial=self._dial) if self.mode == "remote" else None
        if memory := self.request.get("memory"):
            self._start_pager(memory)
        self.house = House(self.mid, self.mode, self.facts, self.work, files, self.proxies, self._clocks)

    def _start_pager(self, source: dict[str, Any]) -> None:
        """For a guest whose memory comes after it; where that is not possible here its source sends everything in the images."""
        assert self.work is not None
        able = features.probe()
        if not (able.lazy_pages and able.uffd):
            self._no_pager = "userfaultfd or CRIU's lazy restore is missing there"
            return
        try:
            self.pager = PagerLink.start(source, self.work / "img", cell_cgroup(self.mid))
        except MigError as e:
            self._no_pager = e.message
            log.warning("no pager: %s", e.message)

    async def _connect_home(self) -> None:
        """Connect to the agent: one link, and one connection for each external."""
        await reach(Fault.BEFORE_PREPARE)
        try:
            self.agent = AgentLink(await agent_link.connect(self.home, self.request, kind="keeper"))
            self._clocks = await self._compare_clocks()
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

    async def _compare_clocks(self) -> tuple[int, int]:
        """Nanoseconds by which home's monotonic and boot clocks are ahead of ours; of some answers the quickest is the most exact.

        Errors of many moves add up in a guest's clock, so a busy node, where an answer takes long, is asked more often.
        """
        assert self.agent is not None
        best, found = 1 << 62, (0, 0)
        for i in range(_MOST_LOOKS):
            if i >= _LOOKS and best < _QUICK_NS:
                break
            sent = time.monotonic_ns()
            m = await self.agent.talk("clocks?")
            took = time.monotonic_ns() - sent
            if took < best:
                now = (time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
                best, found = took, (int(m["monotonic"]) + took // 2 - now[0], int(m["boottime"]) + took // 2 - now[1])
        return found

    def _dial(self, addr: str, port: int) -> socket.socket:
        return links.dial(self.home.id, addr, port)

    # -- the move --------------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Say prepared, follow the source up to GO or abort; then look after the guest until it ends or has moved on."""
        assert self.house is not None
        self.conn.setblocking(False)
        try:
            await self._to_the_barrier()
        except Exception as e:  # whatever it is: a copy that was not accepted must end
            await self._abort(e)
            return
        await self._run_guest()

    async def _to_the_barrier(self) -> None:
        assert self.house is not None and self.work is not None
        cell = self.house.cell
        await wire.asend(self.conn, op="prepared", took_ms=round(self.house.took_ms, 1), no_pager=self._no_pager)
        head = await wire.arecv(self.conn)
        if head.get("op") != "images":
            self._told_to_abort = head.get("op") == "abort"
            raise Aborted(f"the source said {head.get('op')!r}")
        t0 = time.monotonic()
        priority.group_high(cell.processes())
        await receive_images(self.conn, head, str(self.work / "img"))
        t1 = time.monotonic()
        await self._as_agreed()
        t2 = time.monotonic()
        await reach(Fault.BEFORE_RESTORE)
        rest = {int(k): bytes(v) for k, v in head.get("rest", {}).items()}
        lazy = await self._lay_out(head.get("memory"))
        await cell.restore(self.proxies.settle(rest, await self._busy()), lazy=lazy)
        if self.pager is not None:
            await self.pager.restored()
        cell.guest_cgroup.freeze()  # the barrier: guest and CRIU stand still together, whatever dies now
        self.guest = Guest(cell)
        self.positions = Positions(self.facts.shared_files, self.guest.pids())
        self.proxies.start(self.guest, cell.tty_master)  # the terminal is as CRIU set it; nothing flows before home attaches
        await reach(Fault.AT_BARRIER)
        await wire.asend(self.conn, op="ready", images_ms=round((t1 - t0) * 1e3, 1), restore_ms=round((time.monotonic() - t2) * 1e3, 1))
        word = await wire.arecv(self.conn)
        if word.get("op") == "fill":
            word = await self._fill()
        if word.get("op") != "go":
            self._told_to_abort = word.get("op") == "abort"
            raise Aborted(f"the source said {word.get('op')!r}")
        await reach(Fault.BEFORE_RUNNING)
        self.journal.write(RUNNING)  # accepted: from here on only its own end stops the guest
        cell.guest_cgroup.thaw()
        if self.pager is not None and not self._filled:
            await self.pager.push()
        await cell.release()
        try:
            await reach(Fault.AFTER_GO)
            cpu = procfs.cpu_s(os.getpid(), but=self.guest.pids())
            await wire.asend(self.conn, op="running", host_pid=self.guest.pid, cpu_ms=round(cpu * 1e3))
        except Exception as e:  # whatever it is, the guest runs: the source asks our omdiscd for the answer that it did not get
            log.warning("the answer to GO is lost: %s", e)
            self.conn.close()

    async def _fill(self) -> dict[str, Any]:
        """Fetch all memory while the copy stands at the barrier; returns the source's next word, which may come before that."""
        word = asyncio.ensure_future(wire.arecv(self.conn))
        if self.pager is not None:
            await self.pager.push()
            whole = asyncio.ensure_future(self.pager.whole.wait())
            try:
                await asyncio.wait({word, whole}, return_when=asyncio.FIRST_COMPLETED)
                if not whole.done():
                    return await word
            finally:
                whole.cancel()
        self._filled = True
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

    async def _lay_out(self, memory: Any) -> bool:
        """Tell the pager what the images lack; False when they hold everything."""
        if self.pager is None:
            if memory:
                raise wire.WireError("the images lack memory, and there is no pager")
            return False
        if memory is None:
            self.pager.close()
            self.pager = None
            return False
        await self.pager.layout(memory, self._memory_lost, self._memory_news)
        return True

    def _memory_news(self) -> None:
        """Pages have arrived, or the source does not answer."""
        if self.pager is None or self.over.is_set() or not self.row.host_pid:
            return
        self.row.arriving, self.row.waiting_s = self.pager.missing, round(self.pager.silent, 1)
        self.row.waiting_for = str(self.request["memory"].get("name", "")) if self.pager.silent else ""
        if self.pager.whole.is_set() and not self._told_whole and self.row.state in ("running", "stopped", "moving"):
            self._told_whole = True
            self._tasks.spawn(self.tell_agent("memory", **self.pager.report))

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

    async def _abort(self, why: BaseException) -> None:
        """Kill the copy, then leave the tombstone: in this order, so that ``aborted`` is only ever said of a copy that is gone."""
        log.info("aborted: %s", why, exc_info=None if isinstance(why, (Aborted, MigError, EOFError)) else why)
        if self.house is not None:
            self.house.end()
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

    # -- the guest's life ------------------------------------------------------------------------------------------------------

    async def _run_guest(self) -> None:
        assert self.guest is not None and self.house is not None
        self.row.state, self.row.host_pid, self.row.since = "running", self.guest.pid, time.time()
        self.row.hold_until = self.row.since + float(self.request.get("hold_s") or 0)
        await self.tell_agent("running", host_pid=self.guest.pid, proxied=sorted(self.proxies.proxied))
        self._tasks.spawn(self._read_agent())
        self._memory_news()  # what was fetched before it ran
        self.watchers.start()
        self._tasks.spawn(self._guest_events())
        self._tasks.spawn(self._source_knows())
        self._tasks.spawn(self._report())
        await self.over.wait()
        self.house.end()
        self.close()

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

    async def _source_knows(self) -> None:
        """Once the source has our answer nobody asks about this move any more, and its journal may go."""
        with contextlib.suppress(OSError, EOFError):
            if (await wire.arecv(self.conn)).get("op") == "known":
                self.journal.forget()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1)
            assert self.guest is not None
            cpu, self.row.rss = self.guest.usage()
            self.row.cpu_s = self.facts.cpu_s + cpu
            memory = {"arriving": self.row.arriving, "waiting_for": self.row.waiting_for, "waiting_s": self.row.waiting_s}
            await self.tell_agent("stats", cpu_s=self.row.cpu_s, rss=self.row.rss, **memory)

    # -- the home agent --------------------------------------------------------------------------------------------------------

    async def tell_agent(self, op: str, **m: Any) -> None:
        """Send one message; a lost agent is noticed by whoever reads from it."""
        assert self.agent is not None
        await self.agent.tell(op, **m)

    async def ask_agent(self, op: str, answer: str, **m: Any) -> dict[str, Any]:
        """Send a question, wait for the message named ``answer``."""
        assert self.agent is not None
        return await self.agent.ask(op, answer, **m)

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
        """Orders of this node's omdiscd: to stand still, to go on.  Moves go through the home agent, which coordinates all of its guest."""
        if m.get("op") in ("shelve", "unshelve"):
            await self._shelve(m.get("op") == "shelve")
            await reply({"op": "shelved", "id": m.get("id"), "on": self._shelved})
            return
        await reply({"op": "failed", "id": m.get("id"), "error": BadInput("orders go to the home agent").to_wire()})

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
        if on and (self.pager is None or self.pager.arrived.is_set()):
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
            await self.tell_agent("moved", ok=False, error=CannotMove(f"{what}: it is just being moved").to_wire())
            return
        timeout = float(m.get("timeout") or 0)
        if not await self._settled(timeout):
            late = MoveFailed(f"{what}: its memory has not all arrived here yet; still running on {self.node.name}")
            await self.tell_agent("moved", ok=False, error=late.to_wire())
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
            await self.tell_agent("moved", ok=False, error=as_error(result, what, self.node.name).to_wire())
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

    async def _settled(self, timeout: float) -> bool:
        """Whether all of the guest's memory is here: one that moves on serves from one place only."""
        if self.pager is None or self.pager.arrived.is_set():
            return True
        self._progress("its memory is still arriving")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.pager.arrived.wait(), timeout or None)
        return self.pager.arrived.is_set()

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

    def _progress(self, step: str) -> None:
        self._tasks.spawn(self.tell_agent("progress", step=step))

    def _doubt(self, error: str) -> None:
        self.row.state = "in-doubt"
        self._tasks.spawn(self.tell_agent("doubt", error=error))

    def close(self) -> None:
        """Leave nothing behind but the journal."""
        self._tasks.cancel()
        self.proxies.close()
        if self.positions is not None:
            self.positions.close()
        if self.pager is not None:
            self.pager.close()
        if self.house is not None:
            self.house.close()
        self.watchers.close()
        if self.agent is not None:
            self.agent.close()
        self.conn.close()
        if self.work is not None:
            shutil.rmtree(self.work, ignore_errors=True)


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
