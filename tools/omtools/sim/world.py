"""The simulated pool: an event queue, machines, one shared line, and what each machine knows of the others.

A move is a pre-copy: the process goes on at the source while its bytes share the line with all other transfers, both ends pay CPU, memory
is held at both ends; then it stands frozen and goes on at the destination.  A machine knows another as it was 1 to 5 s ago (3 on average),
plus what it sent there itself; a target that is asked answers truly and at once.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mig.economy import manager
from mig.economy.gaps import Gaps
from mig.economy.judge import Candidate, Knobs
from mig.economy.measured import Measured
from mig.economy.policies import Policy, Situation, make
from mig.economy.policies.base import cheapest
from mig.economy.price import NodeView
from omtools.sim.machine import Machine
from omtools.sim.workload import MB, Job, Proc, Workload, jobs, sessions

FREEZE = 0.08
"""Seconds for which a process stands still at the end of its transfer."""
TRANSFERS = 2
"""Simultaneous transfers of one machine; leaving a machine is not held up by it."""
AGE = (1, 5)
"""Seconds by which knowledge of others is old: uniform."""
BURST = 4.0
"""Threads that a burst of a machine's own work shows."""
_REMEMBERED = 8.0
"""Seconds for which a machine adds its own sends to what it hears."""


@dataclass(frozen=True)
class Rules:
    """How a pool is run.  ``placed``: the launcher chooses the start node; ``moves``: processes move; ``by_age``: CPUs are shared by age;
    ``kill``: an owner's login kills guests, which start again; ``perfect``: all know all.

    ``decay``: loads are smoothed so much before they are told and believed, as by omdiscd (None: they are as they are at the instant);
    ``bursts``: the chance, a second and machine, that a sample shows :data:`BURST` threads more.  They take no CPU time.
    """

    policy: str
    placed: bool = False
    moves: bool = True
    by_age: bool = False
    kill: bool = False
    perfect: bool = False
    most: int = manager.MOVES  # moves of one decision
    decay: float | None = None
    bursts: float = 0.0
    rest: float = 1.0  # seconds after an arrival in which a process is left alone
    knobs: Knobs = field(default_factory=lambda: Knobs(freeze_s=FREEZE, setup_s=0.0, move_cpu_s=0.0))


@dataclass
class Result:
    """What came out of one run.  ``lost``: CPU seconds thrown away; ``vacated``: seconds from each login until the last guest was gone."""

    jobs: list[Job]
    moves: int = 0
    lost: float = 0.0
    vacated: list[float] = field(default_factory=list)


class World:
    """One run of a workload under some rules."""

    def __init__(self, w: Workload, rules: Rules, seed: int) -> None:
        self.w, self.rules = w, rules
        self.rng = random.Random(f"p{seed}")
        self.machines = [Machine(i, c, s, m * MB, rules.by_age) for i, (c, s, m) in enumerate(w.pool)]
        self.policies: list[Policy] = [make(rules.policy) for _ in self.machines]
        if rules.perfect or rules.policy in ("roundrobin", "epvm"):
            self.policies = [self.policies[0]] * len(self.machines)  # one central scheduler, as published
        self.measured = [Measured(replace(rules.knobs, bandwidth=w.bandwidth)) for _ in self.machines]
        self.noise = random.Random(f"b{seed}")
        for m in self.machines:
            m.loads.decay = 1.0 if rules.decay is None else rules.decay
        self.result = Result(jobs(w, seed))
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._events = 0
        self._sending: dict[Proc, list[float]] = {}  # bytes left, target, begun
        self._sent_at, self._sent_version = 0.0, 0
        self._history: list[list[tuple[NodeView, bool]]] = []
        self._mine: dict[tuple[int, int], list[tuple[float, int]]] = {}
        self._leaving: dict[int, float] = {}
        self._gaps = [Gaps() for _ in self.machines]
        self._left = len(self.result.jobs)
        for job in self.result.jobs:
            self._at(job.t, self._arrive, job)
        for t, i, login in sessions(w, seed):
            self._at(t, self._login if login else self._logout, i)
        self._at(1.0, self._tick)

    def run(self) -> Result:
        """Until all jobs have ended."""
        while self._left:
            self.now, _, what, arguments = heapq.heappop(self._queue)
            what(*arguments)
        return self.result

    def _at(self, t: float, what: Callable[..., None], *arguments: Any) -> None:
        self._events += 1
        heapq.heappush(self._queue, (t, self._events, what, arguments))

    # -- processes on machines ----------------------------------------------------------------------------------------------------

    def _changed(self, m: Machine) -> None:
        wait = m.rerate()
        if wait < 1e17:
            self._at(self.now + wait, self._due, m, m.version)

    def _due(self, m: Machine, version: int) -> None:
        if version != m.version:
            return
        m.advance(self.now)
        for p in m.ended():
            m.procs.remove(p)
            m.used -= p.mem
            if p.moving:
                self._sent(p, arrived=False)
            p.job.left -= 1
            if not p.job.left:
                p.job.end = self.now
                self._left -= 1
        self._changed(m)

    def _put(self, p: Proc, m: Machine) -> None:
        m.advance(self.now)
        p.node, p.since = m.id, self.now
        m.procs.append(p)
        m.used += p.mem
        self._changed(m)

    def _arrive(self, job: Job) -> None:
        for p in job.procs:
            self._put(p, self._start_node(p) if self.rules.placed else self.machines[p.home])

    # -- the line -----------------------------------------------------------------------------------------------------------------

    def _move(self, p: Proc, to: Machine, *, frozen: bool = False) -> bool:
        """Begin to send; ``frozen``: the process stands still meanwhile (its node is left)."""
        a = self.machines[p.node]
        if p.moving or to is a or (not frozen and max(a.transfers, to.transfers) >= TRANSFERS):
            return False
        self.result.moves += 1
        p.moving = True
        for m in (a, to):
            m.advance(self.now)
            m.transfers += 1
        to.arriving += 1
        to.arriving_mem += p.mem
        to.used += p.mem
        if frozen:
            p.frozen = True
            a.procs.remove(p)
        self._changed(a)
        self._changed(to)
        self._progress()
        self._sending[p] = [float(p.mem), to.id, self.now]
        self._next_sent()
        return True

    def _progress(self) -> None:
        if self._sending:
            sent = (self.now - self._sent_at) * self.w.bandwidth / len(self._sending)
            for x in self._sending.values():
                x[0] -= sent
        self._sent_at = self.now

    def _next_sent(self) -> None:
        self._sent_version += 1
        if self._sending:
            p = min(self._sending, key=lambda q: self._sending[q][0])
            wait = max(0.0, self._sending[p][0]) * len(self._sending) / self.w.bandwidth
            self._at(self.now + wait, self._sent_due, self._sent_version, p)

    def _sent_due(self, version: int, p: Proc) -> None:
        if version == self._sent_version:
            self._sent(p, arrived=True)

    def _sent(self, p: Proc, *, arrived: bool) -> None:
        """All bytes are there, or the process has ended meanwhile."""
        self._progress()
        _, target, begun = self._sending.pop(p)
        to = self.machines[int(target)]
        self._next_sent()
        a = self.machines[p.node]
        for m in (a, to):
            m.advance(self.now)
            m.transfers -= 1
        if arrived:
            if not p.frozen:
                a.procs.remove(p)
                p.frozen = True
            a.used -= p.mem
            self.measured[a.id].learn(pause_s=FREEZE, total_s=self.now - begun + FREEZE, sent=p.mem, rss=p.mem)
            self._at(self.now + FREEZE, self._thaw, p, to)
            self._is_vacated(a)
        else:
            to.arriving -= 1
            to.arriving_mem -= p.mem
            to.used -= p.mem
            p.moving = False
        self._changed(a)
        self._changed(to)

    def _thaw(self, p: Proc, to: Machine) -> None:
        to.arriving -= 1
        to.arriving_mem -= p.mem
        to.used -= p.mem
        p.moving = p.frozen = False
        self._put(p, to)
        if not to.open:  # its owner came meanwhile
            self._evict(to, [p])

    # -- owners -------------------------------------------------------------------------------------------------------------------

    def _login(self, i: int) -> None:
        m = self.machines[i]
        m.advance(self.now)
        m.open = False
        self._leaving[i] = self.now
        self._evict(m, [p for p in m.procs if not p.moving])
        for p in [p for p in m.procs if p.moving]:
            p.frozen = True
            m.procs.remove(p)
        self._changed(m)
        self._is_vacated(m)

    def _logout(self, i: int) -> None:
        self.machines[i].open = True
        self._leaving.pop(i, None)

    def _is_vacated(self, m: Machine) -> None:
        if m.id in self._leaving and m.used == m.arriving_mem:
            self.result.vacated.append(self.now - self._leaving.pop(m.id))

    def _evict(self, m: Machine, procs: list[Proc]) -> None:
        for p in procs:
            to = self._refuge(m, p)
            if not self.rules.kill:
                self._move(p, to, frozen=True)
                continue
            self.result.lost += p.age
            m.advance(self.now)
            m.procs.remove(p)
            m.used -= p.mem
            self._changed(m)
            p.rest, p.age = p.size, 0.0
            self._put(p, to)

    def _refuge(self, m: Machine, p: Proc) -> Machine:
        """Where the price rises least, of what is known to be open and truly is."""
        views = [v for v in self._known(m) if self.machines[v.id].open]
        if not views:
            return self.machines[p.home]
        best = cheapest(Candidate(p.pid, "", p.age, p.mem), views, len(self.machines))[0]
        self._note(m.id, best.id, p.mem)
        return self.machines[best.id]

    # -- knowing and deciding -----------------------------------------------------------------------------------------------------

    def _known(self, m: Machine) -> list[NodeView]:
        """The open machines other than ``m``, as ``m`` knows them."""
        out = []
        for o in self.machines:
            if o is m:
                continue
            if self.rules.perfect or not self._history:
                view, is_open, made = o.view(), o.open, self.now
            else:
                age = self.rng.randint(*AGE)
                back = min(age + 1, len(self._history))
                (view, is_open), made = self._history[-back][o.id], self.now - back + 1
            if not is_open:
                continue
            for t, mem in self._mine.get((m.id, o.id), ()) if not self.rules.perfect else ():
                if t >= made:
                    view = view.plus(1, mem)
            out.append(view)
        return out

    def _note(self, here: int, there: int, mem: int) -> None:
        recent = [x for x in self._mine.get((here, there), ()) if self.now - x[0] < _REMEMBERED]
        self._mine[here, there] = [*recent, (self.now, mem)]

    def _start_node(self, p: Proc) -> Machine:
        home = self.machines[p.home]
        s = Situation(home.view(), self._known(home), (), self.measured[home.id].knobs, len(self.machines))
        job = Candidate(p.pid, "", 0.0, p.mem, placed=True)
        decision = manager.Dialogue(manager.start(self.policies[home.id], job, s))
        while (ask := decision.step) is not None:
            o = self.machines[ask.node]
            decision.answer(o.view() if o.open else None)
        to = next((self.machines[v.id] for v in decision.result or () if self.machines[v.id].open), home)
        if to is not home:
            self._note(home.id, to.id, p.mem)
        return to

    def _tick(self) -> None:
        """Once a second: samples, gossip, shares, and each machine's decision, in a random order."""
        for m in self.machines:
            m.advance(self.now)
            burst = BURST if self.rules.bursts and self.noise.random() < self.rules.bursts else 0.0
            m.loads.sample(float(len(m.procs) + m.arriving) + burst)
            if m.by_age:
                m.reshare()
                self._changed(m)
        self._history.append([(m.view(advertised=self.rules.decay is not None), m.open) for m in self.machines])
        del self._history[:-16]
        if self.rules.moves:
            for i in self.rng.sample(range(len(self.machines)), len(self.machines)):
                if self.machines[i].procs and self.machines[i].open:
                    self._decide(self.machines[i])
        self._at(self.now + 1.0, self._tick)

    def _decide(self, m: Machine) -> None:
        mine = {p.pid: p for p in m.procs if not p.moving and self.now - p.since >= self.rules.rest}
        if not mine:
            return
        going = [p for p in m.procs if p.moving]
        view = m.view() if self.rules.decay is None else replace(m.view(), k=m.loads.local)
        me = view.plus(-len(going), -sum(p.mem for p in going))
        busy = m.rate / m.speed
        placed = self.rules.placed
        candidates = [Candidate(p.pid, "", p.age, p.mem, 1.0, placed, busy=busy) for p in mine.values()]
        sending = sum(1 for p in self._sending if p.node == m.id)
        knobs = self.measured[m.id].knobs
        known = self._known(m)
        lasted = self._gaps[m.id].look(self.now, me, known)
        s = Situation(me, known, candidates, knobs, len(self.machines), sending, m.loads.local, lasted)
        decision = manager.Dialogue(manager.moves(self.policies[m.id], s, most=self.rules.most))
        while (step := decision.step) is not None:
            if isinstance(step, manager.Ask):
                o = self.machines[step.node]
                decision.answer(o.view() if o.open and o.transfers < TRANSFERS else None)
                continue
            to = self.machines[step.target.id]
            begun = to.open and self._move(mine[step.candidate.pid], to)
            if begun:
                self._note(m.id, to.id, step.candidate.rss)
            decision.answer(begun)
