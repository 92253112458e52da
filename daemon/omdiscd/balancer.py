"""Sends processes away from here when that pays: picks candidates, asks targets for their live state, orders the moves."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass

from mig.config import Config
from mig.economy.policy import Candidate, Proposal, judge, propose
from mig.economy.price import NodeView
from mig.errors import BadInput, CannotMove, MigError
from mig.inspect.facts import gather
from mig.kernel import procfs
from mig.model import NodeInfo
from omdiscd.events import Events
from omdiscd.guests import Guests
from omdiscd.jobs import Jobs
from omdiscd.moves import Mover
from omdiscd.peers import reservation
from omdiscd.procscan import TICK, Process
from omdiscd.sampler import Sampler
from omdiscd.targets import Targets

log = logging.getLogger(__name__)

_CPU_BOUND = 0.6
"""Runnable threads on average, below which a process is not limited by the CPU: more of it would not help."""
_ASKED = 3
"""Targets that are asked for their live state; gossip only preselects."""
_AGAIN = 30.0
"""Seconds for which the reasons against a process are believed."""


@dataclass
class Rest:
    """Why a process is left alone until ``until`` (monotonic)."""

    until: float
    failures: int = 0


class Balancer:
    """Decides every ``balance_s``."""

    def __init__(
        self, config: Config, sampler: Sampler, guests: Guests, jobs: Jobs, mover: Mover, targets: Targets, events: Events
    ) -> None:
        self.config, self.sampler, self.guests, self.jobs = config, sampler, guests, jobs
        self.mover, self.targets, self.events = mover, targets, events
        self.reasons: dict[int, list[str]] = {}
        """Why a process cannot move, as last seen."""
        self._looked: dict[int, float] = {}
        self._rest: dict[tuple[int, int], Rest] = {}
        self._moving: set[asyncio.Task[None]] = set()
        self._rng = random.Random()

    async def run(self) -> None:
        """Balance until cancelled."""
        while True:
            # a little chance keeps nodes that were started together from deciding together
            await asyncio.sleep(self.config.balance_s * self._rng.uniform(0.8, 1.2))
            self.jobs.sweep()
            self._forget()
            if self.config.auto != "none" and len(self._moving) < self.config.transfers:
                await self.balance()

    def _forget(self) -> None:
        now, alive = time.monotonic(), self.sampler.table.processes
        self._rest = {k: r for k, r in self._rest.items() if k[0] in alive and alive[k[0]].start == k[1]}
        self._looked = {p: t for p, t in self._looked.items() if p in alive and now - t < _AGAIN}
        self.reasons = {p: r for p, r in self.reasons.items() if p in self._looked}

    async def balance(self) -> None:
        """One decision: start the moves that pay, as many as may run at once."""
        nodes = {n.id: n for n in self.targets.open()}
        if not nodes:
            return
        me = self._without_leaving()
        views = [NodeView.of(n) for n in nodes.values()]
        asked: set[int] = set()
        taken: set[int] = set()
        for p in propose(me, views, self.candidates(), self.targets.knobs, active=len(self._moving)):
            if len(self._moving) >= self.config.transfers:
                return
            if p.candidate.pid in taken or (p.target.id not in asked and len(asked) >= _ASKED):
                continue
            asked.add(p.target.id)
            if await self._start(me, p, nodes[p.target.id], len(nodes) + 1):
                taken.add(p.candidate.pid)
                me = self._without_leaving()

    def _without_leaving(self) -> NodeView:
        """This node as it will be when the moves under way have ended."""
        k, mem = self.mover.leaving()
        return self.sampler.mine().plus(-k, -mem)

    async def _start(self, me: NodeView, p: Proposal, to: NodeInfo, count: int) -> bool:
        """Confirm ``p`` with its target and begin; False when it does not pay there, or cannot be done."""
        c = p.candidate
        if await self._cannot(c.pid):
            return False
        who = self._who(c.pid)
        live = await self.targets.ask(to, who)
        if live is None:
            return False
        verdict = judge(me, live, c, self.targets.knobs, count, active=len(self._moving))
        if not verdict.pays or await self.targets.reserve(to, who, c.k, c.rss):
            return False
        task = asyncio.ensure_future(self._move(c, to, verdict.why))
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)
        await asyncio.sleep(0)  # lets the move begin, so that it counts as leaving from here on
        return True

    async def _move(self, c: Candidate, to: NodeInfo, why: str) -> None:
        log.info("process %d (%s) goes to %s: %s", c.pid, c.comm, to.name, why)
        p = self.sampler.table.processes.get(c.pid)
        key = (c.pid, p.start if p else 0)
        try:
            await self.mover.move(self.mover.subject(c.pid), to, timeout=self.config.move_timeout_s, reason=why, auto=True)
            self._rest[key] = Rest(time.monotonic() + self.config.rest_s)
        except BadInput as e:
            log.info("process %d (%s): %s", c.pid, c.comm, e)  # it ended meanwhile
        except (MigError, OSError) as e:
            reasons = getattr(e, "reasons", [])
            log.warning("process %d (%s) did not go to %s: %s %s", c.pid, c.comm, to.name, e, "; ".join(reasons))
            if isinstance(e, CannotMove):
                self.reasons[c.pid], self._looked[c.pid] = reasons or [str(e)], time.monotonic()
            failures = self._rest.get(key, Rest(0)).failures + 1
            self._rest[key] = Rest(time.monotonic() + self.config.rest_s * 10 * failures, failures)

    # -- candidates -----------------------------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """Processes here that are worth the question, by what the process table and the rules say; no look at their descriptors yet."""
        processes = self.sampler.table.processes
        inside = self._guests_inside()
        out: dict[int, Candidate] = {}
        for p in processes.values():
            if p.runnable < _CPU_BOUND:
                continue
            root = processes.get(inside.get(p.pid, p.pid))  # a guest moves as one, whichever of its processes is busy
            if root is None or root.pid in out or self._excluded(root, root.pid in inside):
                continue
            job = self.jobs.of(root.pid, self.sampler.table.ancestors(root.pid))
            only = frozenset(job.nodes if job else ())
            out[root.pid] = self.mover.candidate(root.pid, root.comm, placed=bool(job and job.placed), only=only)
        return list(out.values())

    def _guests_inside(self) -> dict[int, int]:
        """Every process of every guest that runs here, with the pid here of the guest that it belongs to."""
        out: dict[int, int] = {}
        for k in self.guests.keepers():
            if k.state and k.state.host_pid:
                root = k.state.host_pid
                out |= dict.fromkeys([root, *self.sampler.table.below(root)], root)
        return out

    def _excluded(self, p: Process, guest: bool) -> str:
        """Why the balancer does not look at ``p``; "" when it does."""
        now = time.monotonic()
        if (rest := self._rest.get((p.pid, p.start))) and now < rest.until:
            return "it was moved, or could not be moved, a moment ago"
        if p.pid in self.mover.active:
            return "it is moving"
        if guest:
            return self._guest_excluded(p)
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
        return ""

    async def _cannot(self, pid: int) -> bool:
        """Whether something in the process speaks against a move; what was found is believed for :data:`_AGAIN` seconds."""
        if self.guests.keeper(pid) is not None:
            return False  # it came here by a move; whether it can go on its keeper knows
        if pid in self.reasons:
            return True
        try:
            found = (await asyncio.to_thread(gather, pid)).reasons  # it reads hundreds of files of /proc: not in the loop
        except ProcessLookupError:
            return True
        if found:
            self.reasons[pid], self._looked[pid] = found, time.monotonic()
        return bool(found)

    def _who(self, pid: int) -> str:
        """The name under which a place for it is reserved."""
        if (keeper := self.guests.keeper(pid)) and keeper.state:
            home = keeper.state.home
            return reservation(next((n.id for n in self.targets.nodes() if n.name == home), 0), keeper.state.pid)
        return reservation(self.targets.me().id, pid)

    # -- for ``why`` ----------------------------------------------------------------------------------------------------------------

    def placed(self, pid: int) -> bool:
        """Whether its node was chosen at its start."""
        job = self.jobs.of(pid, self.sampler.table.ancestors(pid))
        return bool(job and job.placed)

    async def why_not(self, pid: int) -> list[str]:
        """Every rule that keeps the balancer from ``pid`` at present."""
        p = self.sampler.table.processes.get(pid)
        if p is None:
            return ["it is not in the process table yet"]
        out = [r] if (r := self._excluded(p, self.guests.keeper(pid) is not None)) else []
        if p.runnable < _CPU_BOUND:
            out.append(f"it is not limited by the CPU: {p.runnable:.2f} runnable threads on average")
        # the processes are looked at only where no rule of ours has the last word
        if not out and await self._cannot(pid):
            out += self.reasons.get(pid, [])
        return out


def age(p: Process) -> float:
    """Seconds since the process was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - p.start * TICK
