"""The home agent of one guest: coordinates its moves and stands between home and whichever cell it lives in.

One process per guest that has left home at least once.  It owns the deputy's link, the proxied pipes and terminal at home, the file
server, and the listener that keepers connect to.  It outlives omdiscd, which only gives orders (``watchers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from typing import Any

from mig import paths, wire
from mig.agent import address
from mig.agent.belongings import Belongings
from mig.agent.externals import Externals
from mig.agent.home_source import PLAN, Changed, HomeSource
from mig.agent.keeper_link import KeeperLink
from mig.agent.move_order import MoveOrder
from mig.agent.stand_in import StandIn
from mig.agent.switchboard import Switchboard
from mig.agent.watchers import Reply, Watchers
from mig.deputy import link
from mig.errors import BadInput, CannotMove, MigError, MoveFailed
from mig.inspect.facts import gather
from mig.kernel import pidfd, procfs
from mig.migration.machine import Outcome
from mig.migration.peer import Destination
from mig.migration.runner import Runner, as_error
from mig.model import GuestState, NodeInfo, ProcessFacts
from mig.tasks import Tasks

log = logging.getLogger(__name__)

TRIES = 3
"""A process that changes what it shares between the first look and the freeze is looked at again; more often would be a livelock."""
DOUBT_PATIENCE = 15.0
"""Seconds in doubt before the caller is told so; a restarted omdiscd or a short cut resolves itself in less."""
OUTPUT_PATIENCE = 30.0
"""Seconds that output of an ended guest may take to reach a reader at home that does not read."""
GROUP_SIGNALS = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH}


class Agent:
    """Coordinates one guest.  ``run`` returns when there is nothing left to look after."""

    def __init__(self, pid: int, node: NodeInfo) -> None:
        self.pid, self.node = pid, node
        self.who = pidfd.identity(pid)
        self.token = os.urandom(32)
        self.facts: ProcessFacts = gather(pid)
        self.board = Switchboard(self.token, self._keeper_connected)
        self.stand_in = StandIn(pid, self._deputy_signal, self._deputy_died)
        self.externals = Externals(pid, self.stand_in.close_descriptors, self._foreground)
        self.belongings = Belongings(pid, self.token, self.externals, self._at_home)
        self.epoch = 0
        self.links: dict[int, KeeperLink] = {}
        self.ended = asyncio.Event()
        self._arrived = asyncio.Event()
        self._hop: asyncio.Future[dict[str, Any]] | None = None
        self._moving = asyncio.Lock()
        self._runner: Runner | None = None
        self._host_boot = ""
        self._order: MoveOrder | None = None  # the move under way, or the last one
        self._over = False
        self._shelved = False
        self._stored = False  # its images lie on this node's disk: it runs nowhere
        self._late: list[tuple[int, bool]] = []  # signals for when it runs again, and whether they are its group's
        self._source: HomeSource | None = None  # while it still serves memory
        self._tasks = Tasks()
        self.row = GuestState(
            role="agent", pid=pid, home=node.name, where=node.name, state="running", uid=self.facts.uid, comm=self.facts.comm,
            start=self.who.start, since=time.time(), helper=os.getpid(), rss=self.facts.rss, cpu_s=self.facts.cpu_s,
        )  # fmt: skip
        self.watchers = Watchers(paths.AGENTS / f"{pid}.sock", lambda: self.row, self._obey)

    async def run(self) -> None:
        """Serve until the guest has ended, or the process turned out to stay at home."""
        self.board.listen(self.node.addr)
        self.watchers.start()
        self._tasks.spawn(address.follow(self.node, self.board, self.belongings))
        self._tasks.spawn(self._watch_deputy())
        await self.ended.wait()
        self._tasks.cancel()
        if self._source is not None:
            await self._source.close()
        await self.stand_in.end_members()
        self.externals.close()
        self.board.close()
        for k in self.links.values():
            k.close()
        self.stand_in.close()
        await self.belongings.stop()
        self.watchers.close()

    # -- orders from omdiscd ---------------------------------------------------------------------------------------------------

    async def _obey(self, m: dict[str, Any], reply: Reply) -> None:
        match m.get("op"):
            case "move":
                await self._move_order(m, reply)
            case "cancel":
                if self._runner is not None:
                    self._runner.cancel("the move was cancelled")
            case "lock":
                self.row.locked = bool(m.get("on"))
                await self.watchers.changed()
                await reply({"op": "locked", "id": m.get("id"), "ok": True})
            case "node":
                self._node_news(str(m.get("name")), str(m.get("state")), str(m.get("boot", "")))
            case other:
                await reply({"op": "failed", "id": m.get("id"), "error": BadInput(f"unknown order {other!r}").to_wire()})

    def _node_news(self, name: str, state: str, boot: str) -> None:
        """The daemon's view of a node changed.

        A node that comes back with another boot id has lost our guest.  One that is only silent has not: it may be busy, or cut off; a
        move to it is given up by the silence of its own connection.
        """
        log.info("%s is %s", name, state)
        if self.epoch and name == self.row.where and boot and self._host_boot and boot != self._host_boot:
            self._tasks.spawn(self._lost(f"{name} was restarted"))
        elif self.epoch and name == self.row.where and {self.row.state, state} in ({"running", "dead"}, {"unreachable", "alive"}):
            self._set(state="unreachable" if state == "dead" else "running")
            self._tasks.spawn(self.watchers.changed())

    async def _move_order(self, m: dict[str, Any], reply: Reply) -> None:
        order = MoveOrder(m, reply, self.pid, self.facts.comm, self.row.where, self._tasks)
        started, was_stored = time.monotonic(), self._stored
        if self._moving.locked():
            busy = CannotMove(f"{self.facts.comm} ({self.pid}) is just being moved", hint="wait for the move under way to end")
            await order.answer(busy, {})
            return
        error: MigError | None = None
        result: dict[str, Any] = {}
        async with self._moving:
            self._set(state="moving")
            self._order = order
            try:
                result = await (self._move_on(order) if self.epoch else self._leave_home(order))
            except MigError as e:
                error = e
            if self.row.state in ("moving", "in-doubt"):
                self._set(state=self._idle_state())
        result |= {"pid": self.pid, "from": order.here, "to": order.to.name, "total_ms": round((time.monotonic() - started) * 1e3, 1)}
        if was_stored:
            result["was"] = "stored"
        await self._say_moved(order, error, result)
        await order.answer(error, result)
        if self.epoch == 0 and not self._over:
            self._finish()  # it stays an ordinary process of this machine: nothing to look after

    async def _say_moved(self, order: MoveOrder, error: MigError | None, result: dict[str, Any]) -> None:
        await self.watchers.changed()
        outcome = ("stored" if self._stored else "arrived") if error is None else error.code
        failure = {} if error is None else {"error": error.message, "reasons": error.reasons, "step": order.step}
        await self._event("move", outcome, reason=order.reason, mid=order.mid, **failure, **result)

    async def _event(self, kind: str, outcome: str, *, reason: str = "", **more: Any) -> None:
        about = {"t": time.time(), "kind": kind, "pid": self.pid, "comm": self.facts.comm, "home": self.node.name}
        await self.watchers.event(**(about | {"outcome": outcome, "reason": reason} | more))

    def _new_move(self) -> str:
        return f"{self.node.id}-{self.pid}-{time.time_ns()}"

    def _idle_state(self) -> str:
        """The guest's state while nothing is done with it: ``frozen`` where its host has left the pool and nobody took it, ``stored`` where
        its images lie here."""
        return "stored" if self._stored else "frozen" if self._shelved else "running"

    def _set(self, **changes: Any) -> None:
        for k, v in changes.items():
            setattr(self.row, k, v)

    # -- the first move --------------------------------------------------------------------------------------------------------

    async def _leave_home(self, order: MoveOrder) -> dict[str, Any]:
        to = order.to
        if order.mode != "remote":
            raise BadInput(f"{self.facts.comm} ({self.pid}) is at home already; nothing was done")
        what = f"{self.facts.comm} ({self.pid}) could not be moved to {to.name}"
        self.board.hosts[1] = to.id
        for attempt in range(TRIES):
            order.mid = self._new_move()
            source = HomeSource(self, Destination(to), order.mid, held=order.held, memory=order.memory)
            self._runner = Runner(source, list(PLAN), progress=order.progress, doubt=self._in_doubt)
            try:
                result = await self._runner.run(order.timeout)
            finally:
                self._runner = None
            if result.outcome is Outcome.ARRIVED:
                break
            await source.settled(result.outcome)
            await source.close()
            if not pidfd.still(self.who) or procfs.state(self.pid) in (None, "Z"):
                raise MoveFailed(f"{self.facts.comm} ({self.pid}) ended while it was being moved to {to.name}; nothing runs there")
            if not isinstance(result.cause, Changed) or attempt == TRIES - 1:
                raise as_error(result, what, self.node.name)
        await self._left_home(source, to)
        pause = result.ended_at - result.frozen_at
        log.info("moved to %s: %s", to.name, {k: round(v * 1e3, 1) for k, v in result.spent.items()})
        return {"pause_ms": round(pause * 1e3, 1)} | source.moved()

    def _in_doubt(self, error: str) -> None:
        """The commit was given and its answer is missing: the caller is told after a while, the asking goes on."""
        log.warning("in doubt: %s", error)
        self._set(state="in-doubt")
        if self._order is not None:
            self._tasks.spawn(self._doubt(self._order))

    async def _doubt(self, order: MoveOrder) -> None:
        await self.watchers.changed()
        await asyncio.sleep(DOUBT_PATIENCE)
        if self.row.state == "in-doubt":
            await order.answer_unknown()

    async def _left_home(self, source: HomeSource, to: NodeInfo) -> None:
        """After the commit: the cell's channels go live, and the original becomes the deputy."""
        self._host_boot = to.boot
        self._set(state="settling", where=to.name, nmigs=1, since=time.time())
        self._arrive(1, [e.id for e in source.facts.externals])
        await self.watchers.changed()
        await self.stand_in.take_place(source)
        self.row.holder = self.stand_in.holder
        # not before the original is taken care of: until then a dead agent's work is found by its journal
        await source.settled(Outcome.ARRIVED)
        self._set(state="running")
        if self.epoch not in self.links:
            self._tasks.spawn(self._lost(f"its keeper on {to.name} died right after it had arrived"))
        self._tasks.spawn(self._hold(source))

    async def _hold(self, source: HomeSource) -> None:
        """The original's memory is held until the guest has all of it; a full dump has nothing to hold."""
        self._source = source
        try:
            moved = await source.carrier.serve()
            self.row.arriving = 0
            log.info("all memory has arrived: %d bytes", source.bytes + moved.bytes)
        except MigError as e:
            log.error("the memory of the original is lost: %s", e.message)  # its guest is ended by its keeper, which says why
        await self.stand_in.let_go()
        self.row.holder = 0
        self._source = None
        await source.close()
        await self.watchers.changed()

    # -- what a source needs of us ---------------------------------------------------------------------------------------------

    async def prepare_request(self, mid: str, epoch: int, mode: str) -> dict[str, Any]:
        """The part of a prepare message that is ours: how the new cell reaches home."""
        assert self._order is not None
        return {
            "op": "prepare", "v": wire.VERSION, "mid": mid, "epoch": epoch, "mode": mode,
            "home": dataclasses.asdict(self.node), "agent": [self.board.addr, self.board.port],
            "files": [self.belongings.files.addr, self.belongings.files.port], "token": self.token,
            "nmigs": self.row.nmigs + 1, "hold_s": self._order.hold_s, "store": mode == "store",
        }  # fmt: skip

    def _at_home(self, k: KeeperLink) -> bool:
        """Whether the keeper is this node's own: another node has nothing to say about processes of this one."""
        ours = self.board.hosts.get(k.epoch) == self.node.id
        if not ours:
            log.warning("the keeper on %s names processes of this node, which is ignored", self.row.where)
        return ours

    def drop_epoch(self) -> None:
        """The cell that was prepared will not run."""
        self.board.drop(self.epoch + 1)

    # -- moving on -------------------------------------------------------------------------------------------------------------

    async def _move_on(self, order: MoveOrder) -> dict[str, Any]:
        """The keeper on the present host is the source; we hold input, and our channels follow the guest."""
        k = self.links.get(self.epoch)
        if k is None:
            raise MigError(f"{self.row.where}, where {self.facts.comm} ({self.pid}) runs, has no connection to us")
        epoch, to = self.epoch + 1, order.to
        order.mid = self._new_move()
        self.board.hosts[epoch] = to.id
        self._hop = asyncio.get_running_loop().create_future()
        self._arrived.clear()
        try:
            request = await self.prepare_request(order.mid, epoch, order.mode)
            await k.send("move", request=request, to=dataclasses.asdict(to), timeout=order.timeout, memory=order.memory)
            answer = await self._hop
        except OSError as e:
            raise MigError(f"the connection to {self.row.where} broke: {e}") from e
        finally:
            self._hop = None
        if not answer["ok"]:
            self.board.drop(epoch)
        await self.belongings.names(back=not answer["ok"], done=True)
        if not answer["ok"]:
            raise MigError.from_wire(answer["error"])
        await self._arrival(epoch, to.name)
        self._host_boot = to.boot
        self._set(where=to.name, nmigs=self.row.nmigs + 1, since=time.time())
        return dict(answer["result"])

    async def _arrival(self, epoch: int, where: str) -> None:
        """Wait for the new keeper's own word: it knows what it proxies.  Raises :class:`MigError` when it died before it could say it."""
        waiting = 0
        while not self._arrived.is_set():
            if epoch not in self.links:
                why = f"its keeper on {where} died right after it had arrived"
                self._tasks.spawn(self._lost(why))
                raise MigError(f"{self.facts.comm} ({self.pid}) is lost: {why}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 0.1)
            waiting += 1
            if waiting == 100:
                self._in_doubt(f"it arrived on {where}, which has not told so for 10 s")

    def _answer_hop(self, answer: dict[str, Any]) -> None:
        if self._hop is not None and not self._hop.done():
            self._hop.set_result(answer)

    def _arrive(self, epoch: int, proxied: list[int], *, stored: bool = False) -> None:
        """The guest runs in the cell ``epoch``, where ``proxied`` externals go through us, or is ``stored`` there."""
        if epoch > self.epoch:
            self.epoch = epoch
            self._shelved, self._stored = False, stored
            self.externals.attach(epoch, self.board, proxied)
            self._arrived.set()
            if not stored:
                for sig, group in self._late:
                    self._tell_keeper("signal", sig=sig, group=group)
                self._late.clear()

    # -- keepers ---------------------------------------------------------------------------------------------------------------

    def _keeper_connected(self, k: KeeperLink) -> None:
        self.links[k.epoch] = k
        self._tasks.spawn(self._read_keeper(k))

    async def _read_keeper(self, k: KeeperLink) -> None:
        try:
            while True:
                await self._keeper_says(k, await k.receive())
        except (EOFError, OSError):
            pass
        k.close()
        if self.links.get(k.epoch) is k:
            del self.links[k.epoch]
            await self._keeper_gone(k)
        # else a move that was given up had the same number: the end of its keeper, which a cut link tells late, means nothing

    async def _keeper_says(self, k: KeeperLink, m: dict[str, Any]) -> None:
        if await self.belongings.answer(k, m, self.facts, stored=self._stored):
            return
        match m.get("op"):
            case "running":
                self._arrive(k.epoch, [int(i) for i in m["proxied"]])
            case "stored":
                if self._at_home(k):
                    self._arrive(k.epoch, [], stored=True)
            case "progress":
                if self._order is not None:
                    self._order.progress(str(m.get("step")))
            case "doubt":
                self._in_doubt(str(m.get("error", "")))
            case "moved":
                self._answer_hop(m)
            case "stats":
                self._set(cpu_s=float(m.get("cpu_s", 0)), rss=int(m.get("rss", 0)), arriving=int(m.get("arriving", 0)))
                self._set(waiting_for=str(m.get("waiting_for", "")), waiting_s=float(m.get("waiting_s", 0)))
            case "shelved" if k.epoch == self.epoch:
                self._shelved = bool(m.get("on"))
                if self.row.state in ("running", "stopped", "frozen"):
                    self._set(state=str(m.get("state")))
                await self.watchers.changed()
            case "memory":
                await self._memory_arrived(m)
            case "lost" if k.epoch == self.epoch:
                await self._lost(str(m["why"]))
            case "stopped" if k.epoch == self.epoch:
                self._set(state="stopped")
                if (terminal := self.externals.terminal) is not None:
                    with contextlib.suppress(ConnectionError):
                        await terminal.sync()  # what it wrote and set comes before the shell takes the terminal
                self.stand_in.stop(int(m["sig"]))
            case "continued" if k.epoch == self.epoch:
                self._set(state="running")
            case "exit" if k.epoch == self.epoch:
                await self._guest_ended(int(m["status"]), {int(i): int(at) for i, at in m.get("positions", {}).items()})

    async def _memory_arrived(self, m: dict[str, Any]) -> None:
        """A keeper's word: of the host where the guest is now, that it has everything; of the one before, that it is free."""
        self._set(arriving=0, waiting_for="", waiting_s=0.0)
        if "faults" in m:
            figures = {k: m[k] for k in ("bytes", "faults", "fault_p50_us") if k in m}
            late = time.time() - self.row.since
            await self._event("memory", "arrived", reason=f"all of its memory is on {self.row.where}, {late:.2f} s after it", **figures)
        await self.watchers.changed()

    async def _keeper_gone(self, k: KeeperLink) -> None:
        while not self._over and k.epoch == self.epoch and self._moving.locked() and k.epoch + 1 in self.links:
            await asyncio.sleep(0.02)  # the next cell may run already: its keeper says so, or ends
        if self._over:
            return
        if k.epoch == self.epoch:
            await self._lost(f"its keeper on {self.row.where} ended without a word")
        elif k.epoch == self.epoch - 1 and self._arrived.is_set():
            self._answer_hop({"ok": True, "result": {}})  # it died when its guest had gone on: nobody else reports that move

    # -- the end ---------------------------------------------------------------------------------------------------------------

    async def _guest_ended(self, status: int, positions: dict[int, int]) -> None:
        """The guest ended: its output first, then the deputy ends in the same way."""
        self._over = True
        await self.stand_in.end_members()  # they hold the ends of pipes whose readers wait for the end of the file
        if not self._arrived.is_set():
            e = MoveFailed(f"{self.facts.comm} ({self.pid}) ended on {self.row.where} before it was moved")
            self._answer_hop({"ok": False, "error": e.to_wire()})
        while self._moving.locked():  # a move that has just ended is reported before the end
            await asyncio.sleep(0.005)
        try:
            await asyncio.wait_for(self.externals.finished(), OUTPUT_PATIENCE)
        except TimeoutError:
            log.warning("a reader at home does not take the guest's last output")
        self.externals.set_positions(positions)
        self.externals.close()
        await self._event("end", "ended", status=status)
        await self._end_deputy(status)
        self._finish()

    async def _lost(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        log.error("the guest is lost: %s", why)
        e = MigError(f"{self.facts.comm} ({self.pid}) is lost: {why}")
        self._answer_hop({"ok": False, "error": e.to_wire()})
        await self._event("lost", "lost", reason=f"the guest is lost: {why}", **{"from": self.row.where})
        await self.stand_in.end_members()
        await self._end_deputy(signal.SIGKILL)
        self._finish()

    async def _end_deputy(self, status: int) -> None:
        while self.row.state == "settling":  # a guest that ended before its deputy was made
            await asyncio.sleep(0.005)
        await self.stand_in.end(status)

    def _finish(self) -> None:
        self._over = True
        asyncio.get_running_loop().call_later(0.05, self.ended.set)  # last messages go out

    # -- home's side of the guest ----------------------------------------------------------------------------------------------

    def _tell_keeper(self, op: str, **m: Any) -> None:
        k = self.links.get(self.epoch)
        if k is None:
            return

        async def send() -> None:
            with contextlib.suppress(OSError):  # the reader of this link reports its end
                await k.send(op, **m)

        self._tasks.spawn(send())

    def _deputy_signal(self, s: link.Signal) -> None:
        terminal = self.externals.terminal
        if terminal is not None and s.sig == signal.SIGWINCH and s.code == link.SI_KERNEL:
            terminal.winsize_changed()  # the cell's terminal makes the signal by itself
            return
        if terminal is not None and s.sig == signal.SIGCONT:
            terminal.check_foreground()  # a guest that reads before its cell knows would be stopped again
        group = (s.code == link.SI_KERNEL and s.sig in GROUP_SIGNALS) or s.sig == signal.SIGCONT
        if self._stored:
            self._late.append((s.sig, group))
        else:
            self._tell_keeper("signal", sig=s.sig, group=group)

    def _deputy_died(self) -> None:
        """Somebody killed the deputy with SIGKILL: that was meant for the guest."""
        if not self._over:
            self._over = True
            self._tell_keeper("kill")
            asyncio.get_running_loop().call_later(0.5, self.ended.set)

    def _foreground(self, on: bool) -> None:
        self._tell_keeper("foreground", on=on)

    async def _watch_deputy(self) -> None:
        """SIGSTOP cannot be caught: a deputy that stands stopped without our doing means that the guest shall stand still as well."""
        while True:
            await asyncio.sleep(0.25)
            if self.row.state == "running" and self.stand_in.stopped():
                self._tell_keeper("signal", sig=int(signal.SIGSTOP), group=False)
