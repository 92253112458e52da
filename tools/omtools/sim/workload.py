"""Streams of jobs: everything follows from a workload and a seed, and is the same for every policy.

Poisson arrivals; CPU demand and memory bounded Pareto with exponent 1 (Harchol-Balter & Downey, 1997); a share of the jobs is parallel;
machines differ in speed, CPUs and memory; owners' sessions follow a day.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

MB = 1_000_000

Machine = tuple[int, float, int]
"""CPUs, speed of one of them, memory in MB."""

POOL: tuple[Machine, ...] = (
    (4, 0.9, 8192), (2, 1.6, 8192), (2, 1.6, 6144), (3, 1.0, 6144), (2, 1.3, 4096), (1, 2.0, 4096), (2, 1.1, 4096), (2, 1.0, 3072),
)  # fmt: skip
"""Eight machines of 21.8 standard CPUs."""
DESKTOPS: tuple[Machine, ...] = (
    *((4, 1.5, 16384),) * 2,
    *((2, (0.8, 1.0, 1.2, 1.6)[i % 4], (2048, 4096, 4096, 8192)[i % 4]) for i in range(20)),
)
"""Two servers, at which all jobs start, and twenty desktops."""


@dataclass(frozen=True)
class Pareto:
    """Bounded Pareto distribution with density falling as x ** -(exponent + 1) between ``low`` and ``high``."""

    low: float
    high: float
    exponent: float = 1.0

    def draw(self, rng: random.Random) -> float:
        """One value."""
        u = rng.random()
        if self.low == self.high:
            return self.low
        return float(self.low * (1.0 - u * (1.0 - (self.low / self.high) ** self.exponent)) ** (-1.0 / self.exponent))


@dataclass(frozen=True)
class Workload:
    """``rate``: jobs a second during ``horizon`` seconds; ``cpu``: standard CPU seconds; ``mem``: MB; or ``burst`` jobs at once on node
    ``homes[0]``."""

    name: str
    about: str
    cpu: Pareto
    mem: Pareto
    rate: float = 0.0
    horizon: float = 0.0
    parallel: float = 0.1  # share of the jobs that have 2 to 8 processes
    pool: tuple[Machine, ...] = POOL
    burst: int = 0
    homes: tuple[int, ...] = ()
    owners: bool = False
    bandwidth: float = 125e6  # bytes/s, one line that all share

    def slower(self, bandwidth: float) -> Workload:
        """The same jobs on another line."""
        return replace(self, bandwidth=bandwidth)


WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload("A", "ten busy minutes at 1.5 x the pool's capacity, then drain", Pareto(2, 2000), Pareto(10, 2000), 2.24, 600),
        Workload("H", "25 minutes at about capacity, larger memory", Pareto(2, 2000), Pareto(40, 1500), 1.39, 1500),
        Workload("B50", "100 jobs of 60 s and 50 MB start on one node at once", Pareto(60, 60), Pareto(50, 50), parallel=0, burst=100,
                 homes=(3,)),
        Workload("B300", "100 jobs of 60 s and 300 MB start on one node at once", Pareto(60, 60), Pareto(300, 300), parallel=0, burst=100,
                 homes=(3,)),
        Workload("D", "two hours of a day: 20 desktops, whose owners come and go, and 2 servers", Pareto(5, 2000), Pareto(40, 1500), 0.62,
                 7200, pool=DESKTOPS, homes=(0, 1), owners=True),
    )
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Proc:
    """One process of a job.  ``rest``, ``age``: standard CPU seconds still needed, and had."""

    pid: int
    job: Job
    size: float
    mem: int  # bytes
    home: int
    rest: float = 0.0
    age: float = 0.0
    node: int = -1
    since: float = 0.0
    rate: float = 0.0
    share: float = 1.0
    moving: bool = False
    frozen: bool = False


@dataclass(eq=False, slots=True)
class Job:
    """``ideal``: seconds that it would take alone in the whole pool."""

    number: int
    t: float
    procs: list[Proc] = field(default_factory=list)
    left: int = 0
    ideal: float = 0.0
    end: float = -1.0

    @property
    def slowdown(self) -> float:
        """Response time over the time alone in the whole pool."""
        return (self.end - self.t) / self.ideal


def jobs(w: Workload, seed: int) -> list[Job]:
    """The jobs of ``w``, by arrival."""
    rng = random.Random(f"w{seed}")
    fastest, power = max(s for _, s, _ in w.pool), sum(c * s for c, s, _ in w.pool)
    homes = w.homes or tuple(range(len(w.pool)))
    out: list[Job] = []
    t, pid = 0.0, 0
    while True:
        if w.burst:
            if len(out) == w.burst:
                return out
        else:
            t += rng.expovariate(w.rate)
            if t > w.horizon:
                return out
        job = Job(len(out), t)
        home = rng.choice(homes)
        k = rng.randint(2, 8) if rng.random() < w.parallel else 1
        size, mem = w.cpu.draw(rng), w.mem.draw(rng)
        if k > 1:
            size, mem = max(size / k, w.cpu.low), max(mem / k, w.mem.low)
        for _ in range(k):
            job.procs.append(Proc(pid, job, size, int(mem * MB), home, rest=size))
            pid += 1
        job.left = k
        job.ideal = max(size / fastest, size * k / power)
        out.append(job)


def sessions(w: Workload, seed: int) -> list[tuple[float, int, bool]]:
    """(time, node, whether somebody logs in): the share of used desktops rises from 0.2 to 0.7 and falls again; 5 minutes a session."""
    if not w.owners:
        return []
    rng = random.Random(f"s{seed}")
    out: list[tuple[float, int, bool]] = []
    for i in range(len(w.homes), len(w.pool)):
        t, used = 0.0, rng.random() < 0.2
        if used:
            out.append((0.0, i, True))
        while t < 1.3 * w.horizon:
            f = 0.2 + 0.5 * max(0.0, math.sin(math.pi * min(1.0, t / w.horizon)))
            t += rng.expovariate(1 / 300) if used else rng.expovariate(f / (1 - f) / 300)
            used = not used
            out.append((t, i, used))
    return sorted(out)
