"""What no balancer can beat, or hardly: the whole pool as one machine without memory limits, with free moves.

``fluid``: all processes get equal parts of the pool at every instant.  ``srpt``: the clairvoyant one, shortest remaining time on the
fastest CPU.
"""

from __future__ import annotations

from omtools.sim.workload import Proc, Workload, jobs
from omtools.sim.world import Result


def bound(w: Workload, seed: int, kind: str) -> Result:
    """Run ``w`` under the bound ``kind``, ``fluid`` or ``srpt``."""
    result = Result(jobs(w, seed))
    speeds = sorted((s for c, s, _ in w.pool for _ in range(c)), reverse=True)
    waiting = [(j.t, p) for j in result.jobs for p in j.procs]
    active: list[Proc] = []
    t, next_one = 0.0, 0
    while next_one < len(waiting) or active:
        arrival = waiting[next_one][0] if next_one < len(waiting) else float("inf")
        k = min(len(active), len(speeds))
        if kind == "srpt":
            active.sort(key=lambda p: p.rest)
            running = list(zip(active, speeds, strict=False))
        else:
            each = sum(speeds[:k]) / len(active) if active else 0.0
            running = [(p, each) for p in active]
        dt = min([arrival - t, *(p.rest / r for p, r in running)])
        for p, r in running:
            p.rest -= r * dt
        t += dt
        for p in [p for p, _ in running if p.rest <= 1e-9]:
            active.remove(p)
            p.job.left -= 1
            if not p.job.left:
                p.job.end = t
        while next_one < len(waiting) and waiting[next_one][0] <= t + 1e-12:
            active.append(waiting[next_one][1])
            next_one += 1
    return result
