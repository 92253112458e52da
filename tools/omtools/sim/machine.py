"""One machine of the simulated pool: shares its CPUs among its processes, slows down as a whole when its memory is overcommitted."""

from __future__ import annotations

from dataclasses import dataclass, field

from mig.economy.load import TwoLoads
from mig.economy.price import NodeView, thrash
from mig.economy.shares import share
from omtools.sim.workload import MB, Proc

TRANSFER_CPU = 0.1
"""CPUs that a transfer takes at either end."""
_DONE = 1e-9


@dataclass(eq=False, slots=True)
class Machine:
    """``used``: bytes; ``transfers``: under way, in and out; ``arriving``: processes on their way here."""

    id: int
    cpus: float
    speed: float
    mem: int
    by_age: bool = False  # share the CPUs by age
    procs: list[Proc] = field(default_factory=list)
    arriving: int = 0
    arriving_mem: int = 0
    used: int = 0
    transfers: int = 0
    open: bool = True
    version: int = 0
    last: float = 0.0
    rate: float = 0.0
    loads: TwoLoads = field(default_factory=TwoLoads)

    def advance(self, now: float) -> None:
        """Let the processes work up to ``now``."""
        dt = now - self.last
        self.last = now
        if dt <= 0.0:
            return
        if self.by_age:
            for p in self.procs:
                work = dt * p.rate
                p.rest -= work
                p.age += work
        else:
            work = dt * self.rate
            for p in self.procs:
                p.rest -= work
                p.age += work

    def rerate(self) -> float:
        """Share the CPUs anew, after a change; returns the seconds until the next process ends, or infinity."""
        self.version += 1
        k = len(self.procs)
        if not k:
            self.rate = 0.0
            return float("inf")
        cpus = max(0.1, self.cpus - TRANSFER_CPU * self.transfers)
        speed = self.speed / thrash(self.used, self.mem)
        if self.by_age:
            return self._rerate_by_age(cpus, speed)
        self.rate = speed * min(1.0, cpus / k)
        return max(0.0, min(p.rest for p in self.procs) / self.rate)

    def _rerate_by_age(self, cpus: float, speed: float) -> float:
        """By weight, but nobody more than one CPU: what the heaviest cannot use goes to the others."""
        total = sum(p.share for p in self.procs)
        first = float("inf")
        left = cpus
        for p in sorted(self.procs, key=lambda p: -p.share):
            part = min(1.0, left * p.share / total) if total > 0 else 0.0
            left -= part
            total -= p.share
            p.rate = max(speed * part, 1e-12)
            first = min(first, p.rest / p.rate)
        return max(0.0, first)

    def reshare(self) -> None:
        """What the daemon does each second: shares by the age that the processes have now."""
        for p in self.procs:
            p.share = share(p.age / self.speed)  # a node counts CPU time, not work

    def ended(self) -> list[Proc]:
        """Processes that have no work left."""
        return [p for p in self.procs if p.rest <= _DONE]

    def view(self, *, advertised: bool = False) -> NodeView:
        """As the economy sees it: live, or with the load that it tells others."""
        k = float(len(self.procs) + self.arriving)
        k = max(k, self.loads.advertised) if advertised else k
        return NodeView(self.id, str(self.id), self.speed, self.cpus, k, self.used, self.mem)

    @property
    def size_mb(self) -> int:
        """Its memory in MB."""
        return self.mem // MB
