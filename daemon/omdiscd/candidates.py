"""Which processes here may be moved without an order, and why the others may not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from mig.config import Config
from mig.economy.judge import DRAG_MAX, Candidate
from mig.errors import MigError
from mig.inspect.facts import gather
from mig.kernel import procfs
from omdiscd.guests import Guests, Link
from omdiscd.jobs import Jobs
from omdiscd.moves import Mover
from omdiscd.procscan import TICK, Process
from omdiscd.sampler import Sampler
from omdiscd.switches import Switches

CPU_BOUND = 0.6
"""Runnable threads on average, below which a process is not limited by the CPU: more of it would not help."""
_AGAIN = 30.0
"""Seconds for which the reasons against a process are believed."""
_DRAWN = 0.1
"""Share of its time that a guest must lose to I/O with home to be looked at though it does not want a CPU all the time."""
_SETTLED = 5.0
"""Seconds after an arrival in which the CPU time of a guest's helpers is that of the move."""


@dataclass
class Rest:
    """Why a process is left alone until ``until`` (monotonic)."""

    until: float
    failures: int = 0


class Candidates:
    """Looks at the process table, the jobs and the rules."""

    def __init__(self, config: Config, sampler: Sampler, guests: Guests, jobs: Jobs, mover: Mover, switches: Switches) -> None:
        self.config, self.sampler, self.guests, self.jobs, self.mover, self.switches = config, sampler, guests, jobs, mover, switches
        self.reasons: dict[int, list[str]] = {}
        """Why a process cannot move, as last seen."""
        self._looked: dict[int, float] = {}
        self._rest: dict[tuple[int, int], Rest] = {}

    def forget(self) -> None:
        """Forget what is over."""
        now, alive = time.monotonic(), self.sampler.table.processes
        self._rest = {k: r for k, r in self._rest.items() if k[0] in alive and alive[k[0]].start == k[1]}
        self._looked = {p: t for p, t in self._looked.items() if p in alive and now - t < _AGAIN}
        self.reasons = {p: r for p, r in self.reasons.items() if p in self._looked}

    def moved(self, pid: int, start: int) -> None:
        """It has just been moved."""
        self._rest[pid, start] = Rest(time.monotonic() + self.config.rest_s)

    def failed(self, pid: int, start: int, reasons: list[str]) -> None:
        """A move failed; ``reasons``: what speaks against any."""
        if reasons:
            self.reasons[pid], self._looked[pid] = reasons, time.monotonic()
        failures = self._rest.get((pid, start), Rest(0)).failures + 1
        self._rest[pid, start] = Rest(time.monotonic() + self.config.rest_s * 10 * failures, failures)

    def all(self, *, idle: bool = False) -> list[Candidate]:
        """Processes that are worth the question, by what the process table and the rules say; no look at their descriptors yet.

        ``idle``: also those that do not want a CPU, for when memory is short.
        """
        processes = self.sampler.table.processes
        inside = self._guests_inside()
        out: dict[int, Candidate] = {}
        for p in processes.values():
            root = processes.get(inside.get(p.pid, p.pid))  # a guest moves as one, whichever of its processes is busy
            if root is None or root.pid in out or (p.runnable < CPU_BOUND and root.pid not in inside and not idle):
                continue
            c = self.one(root.pid, root.comm)
            if not (idle or p.runnable >= CPU_BOUND or c.threads >= CPU_BOUND or c.drag >= _DRAWN):
                continue
            if root.pid not in self.reasons and not self.excluded(root, root.pid in inside):
                out[root.pid] = c
        return list(out.values())

    def one(self, pid: int, comm: str) -> Candidate:
        """The figures of process ``pid``."""
        job = self.jobs.of(pid, self.sampler.table.ancestors(pid))
        only = frozenset(job.nodes if job else ())
        c = self.mover.candidate(pid, comm, placed=bool(job and job.placed), only=only)
        keeper = self.guests.keeper(pid)
        home = keeper.state.home if keeper and keeper.state else self.sampler.info.name
        return replace(c, home=home, drag=self._drag(keeper, c.threads), dirty=self.mover.targets.measured.dirty)

    def _drag(self, keeper: Link | None, threads: float) -> float:
        """The share of its time that a guest loses to I/O with home.

        What its helpers here work, home's work as much again, and the guest waits meanwhile: so twice their CPU time, in proportion to
        all that the guest does.
        """
        s = keeper.state if keeper else None
        if s is None or s.home == self.sampler.info.name or time.time() - s.since < _SETTLED:
            return 0.0
        table = self.sampler.table
        guest = {s.host_pid, *table.below(s.host_pid)}
        helpers = [p for p in (s.helper, *table.below(s.helper)) if p not in guest and p in table.processes]
        waits = 2 * sum(table.processes[p].busy for p in helpers)
        return min(DRAG_MAX, waits / (waits + max(threads, 0.01))) if waits > 0.02 else 0.0

    def _guests_inside(self) -> dict[int, int]:
        """Every process of every guest that runs here, with the pid here of the guest that it belongs to."""
        out: dict[int, int] = {}
        for k in self.guests.keepers():
            if k.state and k.state.host_pid:
                root = k.state.host_pid
                out |= dict.fromkeys([root, *self.sampler.table.below(root)], root)
        return out

    # -- rules ----------------------------------------------------------------------------------------------------------------------

    def excluded(self, p: Process, guest: bool) -> str:
        """Why the balancer does not look at ``p``; "" when it does."""
        now = time.monotonic()
        if self.switches.stay:
            return "this node lets nothing go by itself (mosctl stay)"
        if (rest := self._rest.get((p.pid, p.start))) and now < rest.until:
            return "it was moved, or could not be moved, a moment ago"
        if p.pid in self.mover.active:
            return "it is moving"
        return self._guest_excluded(p) if guest else self._own_excluded(p)

    def _own_excluded(self, p: Process) -> str:
        if self.switches.lstay:
            return "this node lets none of its own processes go by itself (mosctl lstay)"
        if age(p) < self.config.min_age_s:
            return f"it is younger than {self.config.min_age_s:g} s"
        line = [p.pid, *self.sampler.table.ancestors(p.pid)]
        ours = {*self.mover.spawner.pids, *self.guests.helpers()}
        if p.pid == 1 or self.mover.is_ours(p.pid) or ours & set(line):
            return "it is part of omdiscd or of the system"
        if p.comm in self.config.never:
            return f"{p.comm} is in the list of commands that are never moved"
        job = self.jobs.of(p.pid, line[1:])
        if job and (job.locked or job.home):
            return "it is locked" if job.locked else "it was started to stay at home"
        if self.config.auto == "none" or (self.config.auto == "mosrun" and job is None):
            return f"auto = {self.config.auto}: the balancer moves only jobs of mosrun" if self.config.auto == "mosrun" else "auto = none"
        if (agent := self.guests.agent(p.pid)) and agent.state and (agent.state.locked or agent.state.state != "running"):
            return "it is locked or moving"
        try:
            uid = procfs.status(p.pid).uids[0]
        except ProcessLookupError:
            return "it has ended"
        if not self.config.allow_root_guests and not self.config.allow_uids[0] <= uid <= self.config.allow_uids[1]:
            return f"processes of user {uid} are not moved"
        return ""

    def _guest_excluded(self, p: Process) -> str:
        k = self.guests.keeper(p.pid)
        if k is None or k.state is None:
            return "its keeper is gone"
        if k.state.locked:
            return "it is locked"
        if k.state.state != "running":
            return f"it is {k.state.state}"
        if time.time() - k.state.since < self.config.rest_s:
            return "it came here a moment ago"
        if (left := k.state.hold_until - time.time()) > 0:
            return f"it was moved here by hand: left alone for {left:.0f} s more"
        return ""

    async def cannot(self, pid: int) -> bool:
        """Whether something in the process speaks against a move; what was found is believed for :data:`_AGAIN` seconds."""
        if self.guests.keeper(pid) is not None:
            return False  # it came here by a move; whether it can go on its keeper knows
        if pid in self.reasons:
            return True
        try:
            found = (await asyncio.to_thread(gather, pid)).reasons  # it reads hundreds of files of /proc: not in the loop
        except (ProcessLookupError, MigError):
            return True
        if found:
            self.reasons[pid], self._looked[pid] = found, time.monotonic()
        return bool(found)

    async def why_not(self, pid: int) -> list[str]:
        """Every rule that keeps the balancer from ``pid`` at present."""
        p = self.sampler.table.processes.get(pid)
        if p is None:
            return ["it is not in the process table yet"]
        out = [r] if (r := self.excluded(p, self.guests.keeper(pid) is not None)) else []
        c = self.one(pid, p.comm)
        if c.threads < CPU_BOUND and c.drag < _DRAWN:
            out.append(f"it is not limited by the CPU: {c.threads:.2f} runnable threads on average")
        # the processes are looked at only where no rule of ours has the last word
        if not out and await self.cannot(pid):
            out += self.reasons.get(pid, [])
        return out


def age(p: Process) -> float:
    """Seconds since the process was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - p.start * TICK
