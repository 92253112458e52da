"""What is compared, and what is measured of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mig.economy.judge import Knobs
from omtools.sim.bounds import bound
from omtools.sim.workload import WORKLOADS, Workload
from omtools.sim.world import FREEZE, Result, Rules, World

SEEDS = range(32)
"""The published seeds.  The rule was tuned on some of them."""
FRESH = range(1000, 1032)
"""Seeds that nothing was ever tuned on: the goals are told for them, too.  Whoever tunes on them must choose others."""
SLOW = 12.5e6
"""100 Mbit/s."""
_CLASSIC = Knobs(freeze_s=FREEZE, setup_s=0.0, move_cpu_s=0.0)

ROWS: dict[str, Rules | str] = {
    "none": Rules("none", moves=False),
    "round robin": Rules("roundrobin", placed=True, moves=False),
    "E-PVM, knows all": Rules("epvm", placed=True, moves=False, perfect=True),
    "MOSIX": Rules("mosix", most=1),
    "E-MOSIX": Rules("epvm", most=1, rest=0.0),
    "economy, started at home": Rules("economy"),
    "economy, placed": Rules("economy", placed=True),
    "economy, started at home, shares by age": Rules("economy", by_age=True),
    "economy, placed, shares by age": Rules("economy", placed=True, by_age=True),
    "bound: fluid": "fluid",
    "bound: SRPT, clairvoyant": "srpt",
}
"""By name: the rules of a simulated pool, or the kind of a bound."""
KILLED = Rules("roundrobin", placed=True, moves=False, kill=True)
"""Desktops with jobs that cannot move: an owner's login ends them, and they start again elsewhere."""


@dataclass(frozen=True)
class Figures:
    """Of one run: mean, median, 95th percentile of the slowdown, its mean over the 2 % largest jobs, seconds until all had ended, moves a
    job, CPU seconds lost, and the times in which owners got their machines back."""

    mean: float
    median: float
    p95: float
    big: float
    makespan: float
    moves: float
    lost: float
    vacated: tuple[float, ...]


def figures(r: Result) -> Figures:
    """What is kept of a run."""
    slow = sorted(j.slowdown for j in r.jobs)
    n = len(slow)
    big = sorted(r.jobs, key=lambda j: -sum(p.size for p in j.procs))[: max(1, n // 50)]
    return Figures(
        sum(slow) / n, slow[n // 2], slow[int(0.95 * n)], sum(j.slowdown for j in big) / len(big), max(j.end for j in r.jobs),
        r.moves / n, r.lost, tuple(sorted(r.vacated)),
    )  # fmt: skip


def run(workload: str, row: str, seed: int, bandwidth: float = 0.0) -> dict[str, object]:
    """One run, as a plain map: for helper processes."""
    w: Workload = WORKLOADS[workload]
    if bandwidth:
        w = w.slower(bandwidth)
    rules = KILLED if w.owners and row in ("round robin",) else ROWS[row]
    if w.owners and row == "none":
        w = Workload(**{**{f: getattr(w, f) for f in w.__dataclass_fields__}, "owners": False})  # guests never come, so nobody must go
    r = bound(w, seed, rules) if isinstance(rules, str) else World(w, rules, seed).run()
    return asdict(figures(r))


def ideal(workload: str, seed: int) -> float:
    """Seconds in which a burst could end at best: all work over all CPUs."""
    from omtools.sim.workload import jobs

    w = WORKLOADS[workload]
    sizes = [p.size for j in jobs(w, seed) for p in j.procs]
    return max(sum(sizes) / sum(c * s for c, s, _ in w.pool), max(sizes) / max(s for _, s, _ in w.pool))
