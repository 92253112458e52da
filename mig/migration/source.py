"""What every source of a move has and does alike: its journal, image directory, dump helper, carrier and connection to the destination.

The home agent (:mod:`mig.agent.home_source`) and a host's keeper (:mod:`mig.cell.host_source`) add the steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from mig.agent import home_locks, workdir
from mig.criu import features, images, layout
from mig.criu.dumper import Dumper, DumpResult
from mig.deputy import mend
from mig.errors import MoveFailed
from mig.inspect import backlog, sockets
from mig.kernel import priority, procfs
from mig.kernel.cgroup import POLL, Cgroup
from mig.memory import hide
from mig.memory.carrier import Carrier, FullDump
from mig.memory.ladder import Situation, choose
from mig.memory.postcopy import Members, PostCopy
from mig.migration.journal import ARRIVED, COMMIT, ROLLED_BACK, Journal
from mig.migration.machine import Outcome
from mig.migration.peer import Destination
from mig.model import NodeInfo, ProcessFacts

log = logging.getLogger(__name__)

PATIENCE = 3.0
"""Seconds in which a tree that starts programs or connects all the time is caught between two of them; each takes a millisecond."""
EXITING = 0.5
"""Seconds that the end of a process takes at the most on a busy machine."""


class SourceBase:
    """The common half of :class:`mig.migration.runner.Actions`.  ``pid``: the root of the tree, as this node numbers it."""

    def __init__(self, mid: str, dest: Destination, group: Cgroup, facts: ProcessFacts, pid: int) -> None:
        self.mid, self.dest, self.group, self.facts, self.pid = mid, dest, group, facts, pid
        self.journal = Journal(mid, "source")
        self.carrier: Carrier = FullDump()
        self.wanted: tuple[str, int] = ("auto", 0)  # mode, bits a second before the freeze
        self.work: Path | None = None
        self.img_fd = -1
        self.dumper: Dumper | None = None
        self.calls: list[mend.Call] = []
        self.flocks: list[home_locks.Flock] = []
        self.names: list[str] = []
        """Of its unix sockets, which the copy's restore takes away."""
        self.bytes = 0
        self.rounds = 0
        self.cpu_before = 0.0
        """CPU seconds that this process and its helpers had used before the move."""
        self.cpu_there = 0.0

    @property
    def img(self) -> str:
        """The image directory."""
        assert self.work is not None
        return str(self.work / "img")

    async def choose_carrier(self, node: NodeInfo, members: Members, *, record_locks: bool) -> None:
        """The way that memory goes.  ``members``: gives those whose memory may be hidden, see :class:`mig.memory.postcopy.PostCopy`."""
        able = await asyncio.to_thread(features.probe)
        situation = Situation(
            hideable=await asyncio.to_thread(hide.hideable, members()), record_locks=record_locks,
            lazy=able.lazy_pages and able.uffd, no_shim=await asyncio.to_thread(layout.shim_problem),
        )  # fmt: skip
        mode, why = choose(self.wanted[0], situation)
        self.carrier = FullDump(why) if mode == "full" else PostCopy(node, members, mode=mode, why=why, limit_bps=self.wanted[1])

    async def prepare(self, request: dict[str, Any], cell_init: int | None = None) -> None:
        """Have a cell made at the destination; what this side will need starts meanwhile.  Raises :class:`mig.errors.MigError`."""
        await self.dest.ask_for_cell(request | {"memory": await self.carrier.prepare()})
        helper = asyncio.ensure_future(self.start_dumper(cell_init))
        try:
            answer = await self.dest.prepared()
            await helper
            if self.carrier.mode != "full" and (why := str(answer.get("no_pager", "an older version runs there"))):
                await self.carrier.close()
                self.carrier = FullDump(f"{self.dest.node.name}: {why}")
        except BaseException:
            helper.cancel()
            await asyncio.gather(helper, return_exceptions=True)  # it ends what it has started
            raise

    async def start_dumper(self, cell_init: int | None = None) -> None:
        """The dump helper stands ready, everything is imported that the freeze will need."""
        self.work = workdir.make(self.mid, "source", self.facts.rss)
        self.img_fd = os.open(self.img, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        layout.image("core")  # imported here: 0.1 s that would otherwise fall into the freeze
        self.dumper = await Dumper.start(self.img_fd, cell_init=cell_init, hides=self.carrier.mode != "full")

    async def precopy(self) -> None:
        """What goes before the freeze; what is slow to read is read now."""
        assert self.dumper is not None
        moved = await self.carrier.precopy()
        self.bytes, self.rounds = self.bytes + moved.bytes, moved.rounds
        if self.carrier.mode != "full":
            await self.dumper.look(self.carrier.dump_options()["pids"])

    async def dump(self, pid: int, freezer: str) -> DumpResult:
        """CRIU's dump of the tree under ``pid`` (numbered as CRIU sees it) into the images."""
        assert self.dumper is not None
        await self.carrier.frozen()
        result = await self.dumper.dump(pid, freezer, memory=self.carrier.dump_options())
        await self.carrier.dumped(result)
        self.names = images.carry_sockets(self.img)
        log.info("dump: %s ms, %d bytes of memory in the images", result.ms, result.pages_bytes)
        return result

    async def stop_dumper(self) -> None:
        """End the dump helper; idempotent."""
        if self.dumper is not None:
            await self.dumper.close()
            self.dumper = None

    def freeze(self) -> None:
        """The tree stands still; what its threads wait in is noted, because CRIU will break it off.

        What CRIU cannot carry and is over in a moment, it is given that moment for.  Raises ``MoveFailed`` when it does not end.
        """
        priority.group_high()
        deadline = time.monotonic() + PATIENCE
        with contextlib.closing(sockets.UnixDiag(self.pid)) as diag:
            while True:
                self.group.freeze()
                self._wait_for_exiting()
                threads = [(p, t) for p in self.group.procs() for t in procfs.threads(p)]
                self.calls = mend.interrupted(threads)
                if not (why := self._not_now(threads, diag)):
                    return
                self.calls = []
                self.group.thaw()
                if time.monotonic() > deadline:
                    raise MoveFailed(f"for {PATIENCE:g} s {why}")
                time.sleep(random.uniform(0.001, 0.005))  # not in step with what it does

    def _not_now(self, threads: list[tuple[int, int]], diag: sockets.UnixDiag) -> str:
        """Why it stands where CRIU cannot dump it; "" if it does not.  A thread between vfork and its child's exec comes to no stop."""
        if waiting := mend.in_vfork(threads):
            return f"process {waiting} has waited in vfork for its child's exec"
        try:
            what = backlog.not_now(diag, {p for p, _ in threads})
        except (FileNotFoundError, ProcessLookupError):
            return ""  # its root has just ended, and its namespaces are gone: the dump will tell
        return f"it has had {what}" if what else ""

    def _wait_for_exiting(self) -> None:
        """Members that were just ending are no members any more and do not freeze; CRIU takes them as soon as they are zombies."""
        deadline = time.monotonic() + EXITING
        members = set(self.group.procs())
        while time.monotonic() < deadline:
            if all(p in members or procfs.state(p) in (None, "Z", "X") for p in procfs.tree(self.pid)):
                return
            time.sleep(POLL)

    def thaw(self) -> None:
        """The tree goes on, with the system calls that CRIU broke off mended."""
        if self.calls:
            mend.mend_running(self.calls, self.group.thaw)
        else:
            self.group.thaw()

    async def ship(self, rest: dict[int, bytes]) -> None:
        """Images to the destination."""
        self.bytes += await self.dest.ship(self.img, rest=rest, **self.carrier.head())

    async def fill(self) -> None:
        """The destination fetches all that is missing, where nothing may stay here."""
        if self.carrier.to_the_end:
            await self.dest.fill()

    def verify(self) -> None:
        """The last look before the commit; raises :class:`mig.errors.MigError`."""
        if procfs.state(self.pid) in (None, "Z"):
            raise MoveFailed("it was killed while it stood frozen")
        if not self.group.is_frozen():
            raise MoveFailed("somebody thawed its cgroup in the middle of the move")
        self.dest.verify()

    async def write_commit(self) -> None:
        """The commit: from here on the destination's copy may run."""
        self.journal.write(COMMIT)

    async def send_go(self) -> None:
        """GO and the wait for RUNNING."""
        self.cpu_there = float((await self.dest.go()).get("cpu_ms") or 0) / 1000  # an older version does not tell

    async def ask_destination(self) -> str:
        """What the destination's node says of this move."""
        return await self.dest.ask(self.mid)

    def moved(self) -> dict[str, Any]:
        """What is reported of an arrived move, beside its times; ``cpu_ms``: CPU time of the helpers at both ends."""
        why = {"mode_why": self.carrier.why} if self.carrier.why else {}
        cpu = self.cpu_used() - self.cpu_before + self.cpu_there
        return {"bytes": self.bytes, "rounds": self.rounds, "mode": self.carrier.mode, "cpu_ms": round(cpu * 1e3)} | why

    def cpu_used(self) -> float:
        """CPU seconds of this process and its helpers so far."""
        return procfs.cpu_s(os.getpid())

    async def settled(self, outcome: Outcome) -> None:
        """The outcome is known here, and all that had to be done about it is done: the journal has served."""
        if outcome is Outcome.ARRIVED:
            self.journal.write(ARRIVED)
            await self.dest.known(self.mid)
        else:
            self.journal.write(ROLLED_BACK)
        self.journal.forget()

    async def close(self) -> None:
        """Free what the move used on this side; the outcome does not matter.  Idempotent."""
        self.dest.close()
        await self.carrier.close()
        home_locks.forget(self.flocks)
        await self.stop_dumper()
        if self.img_fd >= 0:
            os.close(self.img_fd)
            self.img_fd = -1
        if self.work is not None:
            work, self.work = str(self.work), None
            await asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(work, ignore_errors=True))
