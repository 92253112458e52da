"""A first move's source: the process runs at home, as itself, and is about to become a guest elsewhere.

Implements :class:`mig.migration.runner.Actions`.  Undo of every step leaves the process as it was found.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mig.agent import home_locks, workdir
from mig.criu import images, layout
from mig.criu.dumper import Dumper
from mig.deputy import mend
from mig.deputy.helper import Helper
from mig.errors import CannotMove, MoveFailed
from mig.inspect.facts import gather
from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup
from mig.memory.carrier import Carrier, FullDump
from mig.migration.journal import ARRIVED, BEGIN, COMMIT, Journal
from mig.migration.machine import Step
from mig.migration.peer import Destination
from mig.model import ProcessFacts

if TYPE_CHECKING:
    from mig.agent.agent import Agent

log = logging.getLogger(__name__)

PLAN = [s for s in Step if s not in (Step.HOLD, Step.DRAIN)]
"""At home nothing is in flight: the process uses home's own pipes and terminal."""


class Changed(MoveFailed):
    """The process changed what it shares with others between the first look and the freeze; trying again helps."""


class HomeSource:
    """The actions of one first move of ``agent``'s process to ``dest``."""

    def __init__(self, agent: Agent, dest: Destination, mid: str, *, held: Cgroup | None = None) -> None:
        self.agent, self.dest, self.mid = agent, dest, mid
        self.held = held  # mosrun -b/-N: already frozen before its first instruction, in this cgroup
        self.group = held or Cgroup(cgroup.root() / f"mig-P{agent.pid}")
        self.journal = Journal(mid, "source")
        self.facts: ProcessFacts = agent.facts
        self.carrier: Carrier = FullDump()
        self.work: Path | None = None
        self.img_fd = -1
        self.dumper: Dumper | None = None
        self.old_groups: dict[int, Path] = {}
        self.calls: list[mend.Call] = []
        self.flocks: list[home_locks.Flock] = []
        self.bytes = 0
        self.captured = False
        self.prepared: dict[str, Any] = {}
        self.seen: set[str] = set()
        self.converter: Helper | None = None

    async def do(self, step: Step) -> None:
        """Do one step of the plan."""
        match step:
            case Step.ASK:
                await self._ask()
            case Step.CAPTURE:
                await self._capture()
            case Step.PRECOPY:
                self.bytes += (await self.carrier.precopy()).bytes
            case Step.FREEZE:
                await self._freeze()
            case Step.DUMP:
                await self._dump()
            case Step.LOCKS:
                await self.agent.inherit_locks(self.group.procs())
                self.flocks = home_locks.release(self.group.procs())
            case Step.SHIP:
                assert self.work is not None
                self.bytes += await self.dest.ship(str(self.work / "img"), rest={})
            case Step.RESTORE:
                await self.agent.expire_names()
                await self.dest.ready()
            case Step.VERIFY:
                self._still_frozen()
                self.dest.verify()
            case _:
                raise AssertionError(step)

    async def undo(self, step: Step) -> None:
        """Undo one step."""
        match step:
            case Step.ASK:
                await self.dest.abort()
                self.agent.drop_epoch()
            case Step.CAPTURE:
                await self._release()
            case Step.FREEZE:
                self._thaw()
            case Step.LOCKS:
                await self.agent.inherit_locks([])
                home_locks.take_again(self.flocks)
            case _:
                pass

    async def write_commit(self) -> None:
        """The commit: from here on the destination's copy may run."""
        self.journal.write(COMMIT)

    async def send_go(self) -> None:
        """GO and the wait for RUNNING."""
        await self.dest.go()

    async def ask_destination(self) -> str:
        """What the destination's node says of this move."""
        return await self.dest.ask(self.mid)

    # -- steps -----------------------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        a = self.agent
        self.converter = Helper()  # its start-up costs as much CPU as the dump: over long before the freeze
        self.seen = self._special()
        facts = gather(a.pid)
        if facts.reasons:
            raise CannotMove(f"{facts.comm} ({a.pid}) cannot be moved", reasons=facts.reasons)
        self.facts = a.facts = facts
        self.journal.write(BEGIN, pid=a.pid, start=facts.start, cgroup=str(self.group.path), to=dataclasses.asdict(self.dest.node))
        await a.open_externals(facts)
        request = await a.prepare_request(self.mid, 1, "remote")
        self.prepared = await self.dest.prepare(request | {"facts": dataclasses.asdict(facts)})
        await a.board.wait_for(1, [e.id for e in facts.externals])

    async def _capture(self) -> None:
        self.work = workdir.make(self.mid, "source", self.facts.rss)
        self.img_fd = os.open(self.work / "img", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        layout.image("core")  # imported here: 0.1 s that would otherwise fall into the freeze
        self.dumper = await Dumper.start(self.img_fd)
        self.captured = True
        if self.held is None:
            self.group.create()
            self.old_groups = {p: g for p in procfs.tree(self.agent.pid) if (g := cgroup.of(p)) != self.group.path}
            self.group.capture(lambda: procfs.tree(self.agent.pid))

    async def _freeze(self) -> None:
        # its members may have forked meanwhile: children are born into the cgroup and stand still with it
        self.group.freeze()
        known = {e.key for e in self.facts.externals}
        if self._special() - self.seen - known:
            again = gather(self.agent.pid)
            if again.reasons:
                raise Changed("it changed while the move was prepared", reasons=again.reasons)
            if {e.key for e in again.externals} - known:
                raise Changed("it opened a pipe or terminal shared with others while the move was prepared")
        self.calls = mend.interrupted([(p, t) for p in self.group.procs() for t in procfs.threads(p)])

    def _special(self) -> set[str]:
        """Targets of all descriptors of the tree that are not plain files."""
        out = set()
        for p in procfs.tree(self.agent.pid):
            try:
                with os.scandir(f"/proc/{p}/fd") as fds:
                    for fd in fds:
                        target = os.readlink(fd.path)
                        if not target.startswith("/") or target.startswith("/dev/"):
                            out.add(target)
            except FileNotFoundError:
                continue  # a member that ended meanwhile
        return out

    async def _dump(self) -> None:
        assert self.dumper is not None and self.work is not None
        await self.dumper.dump(self.agent.pid, str(self.group.path), memory=self.carrier.dump_options())
        images.mend_interrupted(str(self.work / "img"), self.calls)
        self.agent.drop_signals = images.pending_signals(str(self.work / "img"), self.agent.pid)

    def _still_frozen(self) -> None:
        if procfs.state(self.agent.pid) in (None, "Z"):
            raise MoveFailed("it was killed while it stood frozen")
        if not self.group.is_frozen():
            raise MoveFailed("somebody thawed its cgroup in the middle of the move")

    # -- undo ------------------------------------------------------------------------------------------------------------------

    def _thaw(self) -> None:
        if self.calls:
            mend.mend_running(self.calls, self.group.thaw)
        else:
            self.group.thaw()

    async def _release(self) -> None:
        if self.dumper is not None:
            await self.dumper.close()
            self.dumper = None
        if self.captured:
            if self.held is not None:
                self.group.thaw()
            self.leave_group()

    def leave_group(self) -> None:
        """Every member back to where it was (a child born meanwhile: to where its root was), the cgroup away."""
        if not self.group.exists():
            return
        root_group = self.old_groups.get(self.agent.pid, cgroup.root())
        while members := self.group.procs():
            for p in members:
                try:
                    Cgroup(self.old_groups.get(p, root_group)).add(p)
                except ProcessLookupError:
                    continue
                except OSError:
                    Cgroup(cgroup.root()).add(p)  # its old cgroup has been removed meanwhile
        self.group.remove()

    async def arrived(self) -> None:
        """It runs there; the destination learns that we know."""
        self.journal.write(ARRIVED)
        await self.dest.known()
        self.journal.forget()

    async def close(self) -> None:
        """Free what the move used on this side; the outcome does not matter."""
        self.dest.close()
        home_locks.forget(self.flocks)
        if self.converter is not None:
            self.converter.__exit__(None, None, None)
            self.converter = None
        if self.dumper is not None:
            await self.dumper.close()
            self.dumper = None
        if self.img_fd >= 0:
            os.close(self.img_fd)
            self.img_fd = -1
        if self.work is not None:
            await asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(str(self.work), ignore_errors=True))
