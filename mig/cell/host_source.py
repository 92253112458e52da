"""A later move's source: the guest lives in a cell here and goes on to another node, or home.

Implements :class:`mig.migration.runner.Actions`.  Memory goes straight to the next host; the home agent holds input meanwhile and
re-points the channels afterwards.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mig.agent import home_locks, workdir
from mig.cell import locks
from mig.criu import images
from mig.criu.dumper import Dumper
from mig.deputy import mend
from mig.errors import CannotMove, MoveFailed
from mig.inspect.facts import gather
from mig.kernel import procfs
from mig.memory.carrier import Carrier, FullDump
from mig.migration.journal import ARRIVED, BEGIN, COMMIT, ROLLED_BACK, Journal
from mig.migration.machine import Outcome, Step
from mig.migration.peer import Destination
from mig.model import ProcessFacts

if TYPE_CHECKING:
    from mig.cell.keeper import Keeper


class HostSource:
    """The actions of one move of ``keeper``'s guest to ``dest``; ``request`` is the agent's part of the prepare message."""

    def __init__(self, keeper: Keeper, dest: Destination, request: dict[str, Any]) -> None:
        assert keeper.house is not None and keeper.guest is not None
        self.keeper, self.dest, self.request = keeper, dest, request
        self.house, self.guest, self.proxies = keeper.house, keeper.guest, keeper.proxies
        self.group = keeper.house.cell.guest_cgroup
        self.mid = str(request["mid"])
        self.journal = Journal(self.mid, "source")
        self.carrier: Carrier = FullDump()
        self.plan = list(Step)
        self.facts: ProcessFacts = keeper.facts
        self.work: Path | None = None
        self.img_fd = -1
        self.dumper: Dumper | None = None
        self.calls: list[mend.Call] = []
        self.rest: dict[int, bytes] = {}
        self.flocks: list[home_locks.Flock] = []
        self.bytes = 0

    async def do(self, step: Step) -> None:
        """Do one step of the plan."""
        match step:
            case Step.ASK:
                await self._ask()
            case Step.CAPTURE:
                self.work = workdir.make(self.mid, "source", self.facts.rss)
                self.img_fd = os.open(self.work / "img", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self.dumper = await Dumper.start(self.img_fd, cell_init=self.house.cell.init_pid)
            case Step.PRECOPY:
                self.bytes += (await self.carrier.precopy()).bytes
            case Step.HOLD:
                await self.keeper.ask_agent("hold", "held")
            case Step.FREEZE:
                self.group.freeze()
                self.calls = mend.interrupted([(p, t) for p in self.group.procs() for t in procfs.threads(p)])
            case Step.DUMP:
                await self._dump()
            case Step.DRAIN:
                self.rest = await self.proxies.drain()
                self.house.sync()
            case Step.LOCKS:
                await self._locks()
            case Step.SHIP:
                assert self.work is not None
                self.bytes += await self.dest.ship(str(self.work / "img"), rest=self.rest)
            case Step.RESTORE:
                await self.keeper.ask_agent("expire", "expired")
                await self.dest.ready()
            case Step.VERIFY:
                if procfs.state(self.guest.pid) in (None, "Z"):
                    raise MoveFailed("it was killed while it stood frozen")
                self.dest.verify()

    async def undo(self, step: Step) -> None:
        """Undo one step."""
        match step:
            case Step.ASK:
                await self.dest.abort()
            case Step.CAPTURE:
                if self.dumper is not None:
                    await self.dumper.close()
                    self.dumper = None
            case Step.HOLD:
                await self.keeper._agent_send("unhold")
            case Step.FREEZE:
                if self.calls:
                    mend.mend_running(self.calls, self.group.thaw)
                else:
                    self.group.thaw()
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
        then = self.keeper.facts
        now = gather(self.guest.pid, guest=True, known_pipes=self.proxies.keys())
        inner = {procfs.status(p).nspid[-1] for p in self.group.procs()}
        left = sorted(inner - {*now.tree})
        orphans = [f"process {p} has lost its parent and would be left behind: wait until it has ended" for p in left]
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
        self.journal.write(BEGIN, pid=self.guest.pid, to=dataclasses.asdict(self.dest.node))
        await self.dest.prepare(self.request | {"facts": dataclasses.asdict(self.facts)})

    async def _dump(self) -> None:
        assert self.dumper is not None and self.work is not None
        img = str(self.work / "img")
        await self.dumper.dump(self.facts.pid, self.house.cell.freezer, memory=self.carrier.dump_options())
        inner = [dataclasses.replace(c, tid=procfs.status(c.pid, c.tid).nspid[-1]) for c in self.calls]
        images.mend_interrupted(img, inner)

    async def _locks(self) -> None:
        """In a cell on another node locks are held by home's file server, so CRIU saw none: they are written into the images from its
        table.  Then they are let go, or the copy could not take them; its own requests follow within milliseconds."""
        assert self.work is not None
        if self.keeper.mode == "remote":
            held = (await self.keeper.ask_agent("locks", "locks")).get("locks", [])
            if held:
                images.write_locks(str(self.work / "img"), locks.of_guest(held, self.group.procs()))
            await self.keeper.ask_agent("unlock", "unlocked", home=self.request["mode"] == "home")
        else:
            await self.keeper.ask_agent("inherit", "inherited", pids=self.group.procs())
            self.flocks = home_locks.release(self.group.procs())

    async def arrived(self) -> None:
        """It runs there; the destination learns that we know."""
        self.journal.write(ARRIVED)
        await self.dest.known()
        self.journal.forget()

    async def close(self, outcome: Outcome) -> None:
        """Free what the move used on this side."""
        if outcome is Outcome.ARRIVED:
            await self.arrived()
        else:
            self.journal.write(ROLLED_BACK)
            self.journal.forget()
        home_locks.forget(self.flocks)
        self.dest.close()
        if self.dumper is not None:
            await self.dumper.close()
            self.dumper = None
        if self.img_fd >= 0:
            os.close(self.img_fd)
            self.img_fd = -1
        if self.work is not None:
            shutil.rmtree(self.work, ignore_errors=True)


