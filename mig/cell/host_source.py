"""A later move's source: the guest lives in a cell here and goes on to another node, or home.

Implements :class:`mig.migration.runner.Actions`.  Memory goes straight to the next host; the home agent holds input meanwhile and
re-points the channels afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
from typing import TYPE_CHECKING, Any

from mig import logs
from mig.agent import home_locks
from mig.cell import locks
from mig.criu import images
from mig.errors import CannotMove
from mig.inspect.facts import gather
from mig.kernel import pidfd, procfs
from mig.memory.ladder import LEAVING
from mig.migration.journal import BEGIN
from mig.migration.machine import Step
from mig.migration.peer import Destination
from mig.migration.source import SourceBase

if TYPE_CHECKING:
    from mig.cell.keeper import Keeper


_LOOKS = 16
"""Looks at a guest that starts programs all the time, about which something is found that may be gone in a moment."""


class HostSource(SourceBase):
    """The actions of one move of ``keeper``'s guest to ``dest``; ``request`` is the agent's part of the prepare message."""

    def __init__(self, keeper: Keeper, dest: Destination, request: dict[str, Any], memory: tuple[str, int] = ("auto", 0)) -> None:
        assert keeper.house is not None and keeper.guest is not None
        super().__init__(str(request["mid"]), dest, keeper.house.cell.guest_cgroup, keeper.facts, keeper.guest.pid)
        logs.about(self.mid)
        self.keeper, self.request = keeper, request
        self.wanted = (LEAVING, 0) if request.get("store") else memory
        self.cpu_before = self.cpu_used()
        self.house, self.proxies = keeper.house, keeper.proxies
        self.rest: dict[int, bytes] = {}
        self.keeps, self.kept = False, 0
        """Whether home can put back the names of its sockets, should the copy be given up (an older one does not know), and of how many."""

    def cpu_used(self) -> float:
        """As elsewhere, without the guest, which is below us."""
        return procfs.cpu_s(os.getpid(), but=self.group.procs())

    async def do(self, step: Step) -> None:
        """Do one step of the plan."""
        match step:
            case Step.ASK:
                await self._ask()
            case Step.CAPTURE:
                pass  # since its arrival it is in a cgroup of its own
            case Step.PRECOPY:
                await self.precopy()
            case Step.HOLD:
                await self.keeper.ask_agent("hold", "held")
            case Step.FREEZE:
                self.freeze()
            case Step.DUMP:
                await self._dump()
            case Step.DRAIN:
                # not before the dump, which would ask for everything anew, and before the restore, which begins with the last image
                expired, self.rest = await asyncio.gather(self.keeper.ask_agent("expire", "expired"), self.proxies.drain())
                self.keeps = bool(expired.get("keeps"))
                self.house.sync()
            case Step.LOCKS:
                await self._locks()
            case Step.SHIP:
                if self.names and self.keeps:
                    self.kept = int((await self.keeper.ask_agent("keep names", "names kept", names=self.names))["count"])
                await self.ship(self.rest)
            case Step.RESTORE:
                await self.dest.ready()
            case Step.FILL:
                await self.fill()
            case Step.VERIFY:
                self.verify()

    async def undo(self, step: Step) -> None:
        """Undo one step."""
        match step:
            case Step.ASK:
                await self.stop_dumper()
                await self.dest.abort()
            case Step.SHIP:
                await self.dest.abort()  # the copy has what only one can have: names and locks
                if self.kept:
                    await self.keeper.ask_agent("names back", "names are back")
            case Step.HOLD:
                await self.keeper.tell_agent("unhold")
            case Step.FREEZE:
                self.thaw()
            case Step.DRAIN:
                self.proxies.resume()
            case Step.LOCKS:
                if self.keeper.mode == "remote":
                    await self.keeper.ask_agent("relock", "relocked")
                else:
                    await self.keeper.ask_agent("inherit", "inherited", pids=[])
                home_locks.take_again(self.flocks)
            case _:
                pass

    # -- steps -----------------------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        then = self.keeper.facts
        for _ in range(_LOOKS):
            now = gather(self.pid, guest=True, known_pipes=self.proxies.keys())
            orphans = [f"process {p} has lost its parent and would be left behind: wait until it has ended" for p in self._orphans()]
            if not now.passing and not orphans:
                break
            await asyncio.sleep(random.uniform(0.01, 0.05))
        if reasons := [*now.reasons, *orphans]:
            raise CannotMove(f"{now.comm} ({now.pid}) cannot be moved", reasons=reasons)
        of_home = {e.id: e for e in then.externals}
        for e in now.externals:
            if (home := of_home.get(e.id)) is not None:
                e.shared, e.holders = home.shared, home.holders
        self.facts = dataclasses.replace(
            now, pid=then.pid, start=then.start, boot=then.boot, hostname=then.hostname, ppid=then.ppid, shared_files=then.shared_files,
            cpu_s=self.keeper.row.cpu_s,
        )  # fmt: skip
        if self.request.get("store") and await self._locked():
            raise CannotMove(f"{now.comm} ({now.pid}) cannot be stored", reasons=["it holds file locks, which nobody could keep meanwhile"])
        if self.keeper.mode != "remote":  # at home set-id programs are what they are: it may be somebody else by now
            await self.keeper.ask_agent("leaves", "leave", pids=[self.pid, *self.group.procs()])
        await self.choose_carrier(self.keeper.node, self._numbers, record_locks=await self._record_locks())
        me = pidfd.identity(os.getpid())
        self.journal.write(BEGIN, pid=self.pid, keeper=me.pid, keeper_start=me.start, to=dataclasses.asdict(self.dest.node))
        await self.prepare(self.request | {"facts": dataclasses.asdict(self.facts)}, self.house.cell.init_pid)

    def _numbers(self) -> dict[int, int]:
        """The members as this node sees them, to their numbers in the cell."""
        out = {}
        for p in self.group.procs():
            with contextlib.suppress(ProcessLookupError):
                out[p] = procfs.status(p).nspid[-1]
        return out

    async def _record_locks(self) -> bool:
        """Whether it holds locks of fcntl(2): on another node its file server at home knows, at home the kernel."""
        if self.keeper.mode != "remote":
            return bool(home_locks.scan(self.group.procs())[1])
        held = (await self.keeper.ask_agent("locks", "locks")).get("locks", [])
        return any(lock["kind"] != "flock" for lock in held)

    async def _locked(self) -> bool:
        """Whether it holds any lock of a file of home's."""
        return bool((await self.keeper.ask_agent("locks", "locks")).get("locks"))

    def _orphans(self) -> list[int]:
        """Numbers, as the guest sees them, of processes in its cell that do not descend from it."""
        found = set(self.group.procs())
        strangers = found - {*procfs.tree(self.pid)}  # looked up afterwards: what is born meanwhile is nobody's stranger
        orphans = []
        for p in strangers:
            with contextlib.suppress(ProcessLookupError):
                if procfs.state(p) not in (None, "Z", "X"):
                    orphans.append(procfs.status(p).nspid[-1])
        return sorted(orphans)

    async def _dump(self) -> None:
        await self.dump(self.facts.pid, self.house.cell.freezer)
        images.mend_interrupted(self.img, [dataclasses.replace(c, tid=procfs.status(c.pid, c.tid).nspid[-1]) for c in self.calls])

    async def _locks(self) -> None:
        """In a cell on another node locks are held by home's file server, so CRIU saw none: they are written into the images from its
        table.  Then they are let go, or the copy could not take them; its own requests follow within milliseconds."""
        if self.keeper.mode == "remote":
            held = (await self.keeper.ask_agent("locks", "locks")).get("locks", [])
            if held:
                images.write_locks(self.img, locks.of_guest(held, self.group.procs()))
            await self.keeper.ask_agent("unlock", "unlocked")
        else:
            await self.keeper.ask_agent("inherit", "inherited", pids=self.group.procs())
            self.flocks = home_locks.release(self.group.procs())
