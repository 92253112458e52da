"""A first move's source: the process runs at home, as itself, and is about to become a guest elsewhere.

Implements :class:`mig.migration.runner.Actions`.  Undo of every step leaves the process as it was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

from mig.agent import home_locks
from mig.agent.externals import Gone
from mig.criu import images
from mig.deputy.helper import Helper
from mig.errors import CannotMove, MoveFailed
from mig.inspect.facts import gather
from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup
from mig.memory.postcopy import PostCopy
from mig.migration.journal import BEGIN, CAPTURED, FROZEN, NAMED, UNLOCKED
from mig.migration.machine import Outcome, Step
from mig.migration.peer import Destination
from mig.migration.source import SourceBase
from mig.model import ProcessFacts

if TYPE_CHECKING:
    from mig.agent.agent import Agent

PLAN = [s for s in Step if s not in (Step.HOLD, Step.DRAIN)]
"""At home nothing is in flight: the process uses home's own pipes and terminal."""


_LOOKS = 16
"""Looks at a process that opens and closes all the time what it shares with others."""


class Changed(MoveFailed):
    """The process changed what it shares with others between the first look and the freeze; trying again helps."""


class HomeSource(SourceBase):
    """The actions of one first move of ``agent``'s process to ``dest``."""

    def __init__(
        self, agent: Agent, dest: Destination, mid: str, *, held: Cgroup | None = None, memory: tuple[str, int] = ("auto", 0)
    ) -> None:
        super().__init__(mid, dest, held or Cgroup(cgroup.root() / f"mig-P{agent.pid}"), agent.facts, agent.pid)
        self.agent = agent
        self.wanted = memory
        self.held = held  # mosrun -b/-N: already frozen before its first instruction, in this cgroup
        self.old_groups: dict[int, Path] = {}
        self.captured = False
        self.seen: set[str] = set()
        self.converter: Helper | None = None
        self.drop_signals = 0
        """Signals that travel in the images, as a mask: its deputy must not pass them on as well."""

    async def do(self, step: Step) -> None:
        """Do one step of the plan."""
        match step:
            case Step.ASK:
                await self._ask()
            case Step.CAPTURE:
                await self._capture()
            case Step.PRECOPY:
                await self.precopy()
            case Step.FREEZE:
                # its members may have forked meanwhile: children are born into the cgroup and stand still with it
                self.freeze()
                self.journal.write(FROZEN, calls=[dataclasses.astuple(c) for c in self.calls])
                self._look_again()
            case Step.DUMP:
                await asyncio.gather(self._dump(), self.agent.belongings.expire_names())
            case Step.LOCKS:
                await self.agent.belongings.inherit_locks(self.group.procs())
                self.flocks = home_locks.release(self.group.procs(), lambda held: self.journal.write(UNLOCKED, flocks=held))
            case Step.SHIP:
                if self.names:
                    self.journal.write(NAMED, names=self.names)
                await self.agent.belongings.keep_names(self.names)
                await self.ship({})
            case Step.RESTORE:
                await self.dest.ready()
            case Step.FILL:
                await self.fill()
            case Step.VERIFY:
                self.verify()
            case _:
                raise AssertionError(step)

    async def undo(self, step: Step) -> None:
        """Undo one step."""
        match step:
            case Step.ASK:
                await self.stop_dumper()
                await self.dest.abort()
                self.agent.drop_epoch()
            case Step.SHIP:
                await self.dest.abort()  # the copy has what only one can have: names and locks
                await self.agent.belongings.names(back=True)
            case Step.CAPTURE:
                if self.captured:
                    if self.held is not None:
                        self.group.thaw()
                    self.leave_group()
            case Step.FREEZE:
                self.thaw()
            case Step.LOCKS:
                await self.agent.belongings.inherit_locks([])
                home_locks.take_again(self.flocks)
            case _:
                pass

    # -- steps -----------------------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        a = self.agent
        self.converter = Helper()  # its start-up costs as much CPU as the dump: over long before the freeze
        facts = await self._look()
        self.journal.write(BEGIN, pid=a.pid, start=facts.start, cgroup=str(self.group.path), to=dataclasses.asdict(self.dest.node))
        record_locks = bool(home_locks.scan(procfs.tree(a.pid))[1])
        await self.choose_carrier(a.node, lambda: {p: p for p in procfs.tree(a.pid) if _lives(p)}, record_locks=record_locks)
        request = await a.prepare_request(self.mid, 1, "remote")
        await self.prepare(request | {"facts": dataclasses.asdict(facts)})
        await a.board.wait_for(1, [e.id for e in facts.externals])

    async def _look(self) -> ProcessFacts:
        """The facts, with copies taken of what is shared; again where that was gone by then.  Raises :class:`CannotMove`, :class:`Gone`."""
        a = self.agent
        for left in reversed(range(_LOOKS)):
            self.seen = self._special()
            facts = gather(a.pid)
            if facts.reasons:
                if facts.passing and left:
                    await asyncio.sleep(random.uniform(0.01, 0.05))
                    continue
                raise CannotMove(f"{facts.comm} ({a.pid}) cannot be moved", reasons=facts.reasons)
            try:
                await a.belongings.open(facts, a.node.addr)
                break
            except Gone:
                if not left:
                    raise
        self.facts = a.facts = facts
        return facts

    async def _capture(self) -> None:
        self.captured = True
        if self.held is None:
            self.group.create()
            for p in procfs.tree(self.pid):
                with contextlib.suppress(ProcessLookupError):  # a member that ended meanwhile
                    if (g := cgroup.of(p)) != self.group.path:
                        self.old_groups[p] = g
            self.journal.write(CAPTURED, groups=[(p, str(g)) for p, g in self.old_groups.items()])
            self.group.capture(lambda: procfs.tree(self.pid))

    def _look_again(self) -> None:
        """Whether it shares more with others than when its cell was prepared; raises :class:`Changed`."""
        known = {e.key for e in self.facts.externals}
        if self._special() - self.seen - known:
            again = gather(self.pid, frozen=True)
            if again.reasons:
                raise Changed("it changed while the move was prepared", reasons=again.reasons)
            # a new pipe was made by the tree itself; if nobody else has it, its other end was closed: it travels in the images
            if {e.key for e in again.externals if not e.alone} - known:
                raise Changed("it opened a pipe or terminal shared with others while the move was prepared")

    def _special(self) -> set[str]:
        """Targets of all descriptors of the tree that are not plain files."""
        out = set()
        for p in procfs.tree(self.pid):
            try:
                with os.scandir(f"/proc/{p}/fd") as fds:
                    for fd in fds:
                        target = os.readlink(fd.path)
                        if not target.startswith("/") or target.startswith("/dev/"):
                            out.add(target)
            except (FileNotFoundError, ProcessLookupError):
                continue  # a member that ended meanwhile
        return out

    async def _dump(self) -> None:
        await self.dump(self.pid, str(self.group.path))
        images.mend_interrupted(self.img, self.calls)
        self.drop_signals = images.pending_signals(self.img, self.pid)

    def held_members(self) -> set[int]:
        """Members of the tree whose memory is not in the images."""
        return {pid for _, pid, ranges in self.carrier.processes if ranges} if isinstance(self.carrier, PostCopy) else set()

    def leave_group(self) -> None:
        """Every member back to where it was (a child born meanwhile: to where its root was), the cgroup away."""
        if not self.group.exists():
            return
        leave(self.group, self.old_groups, self.pid)

    async def settled(self, outcome: Outcome) -> None:
        """As :meth:`SourceBase.settled`; a copy that was given up takes no name any more."""
        await self.agent.belongings.names(back=outcome is not Outcome.ARRIVED, done=True)
        await super().settled(outcome)

    async def close(self) -> None:
        """As :meth:`SourceBase.close`, and the conversion helper."""
        if self.converter is not None:
            self.converter.__exit__(None, None, None)
            self.converter = None
        await super().close()


def _lives(pid: int) -> bool:
    return procfs.state(pid) not in (None, "Z", "X")


def leave(group: Cgroup, old_groups: dict[int, Path], root: int) -> None:
    """Every member of ``group`` back to where it was (a child born meanwhile: to where ``root`` was), and the group away."""
    roots = old_groups.get(root, cgroup.root())
    while members := group.procs():
        for p in members:
            try:
                Cgroup(old_groups.get(p, roots)).add(p)
            except ProcessLookupError:
                continue
            except OSError:
                Cgroup(cgroup.root()).add(p)  # its old cgroup has been removed meanwhile
    group.remove()
