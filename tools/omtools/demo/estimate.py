"""How long the jobs would take on one node alone, from the CPU time that each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """A job: when it starts, in seconds; the CPU seconds that it needs; its threads."""

    start: float
    cpu_s: float
    threads: int = 1


def shared_cpu(jobs: Sequence[Work], cpus: float) -> list[float]:
    """When each job ends on ``cpus`` CPUs, every thread getting an equal share of them, but at most one CPU.

    Returns seconds on the clock of the starts, in the order of ``jobs``.
    """
    left = [job.cpu_s for job in jobs]
    ends = [0.0] * len(jobs)
    now = 0.0
    while unfinished := [i for i, work in enumerate(left) if work > 1e-9]:  # what is less is rounding
        running = [i for i in unfinished if jobs[i].start <= now]
        events = [jobs[i].start - now for i in unfinished if jobs[i].start > now]
        speed = {}
        if running:
            share = min(1.0, cpus / sum(jobs[i].threads for i in running))
            speed = {i: share * jobs[i].threads for i in running}
            events += [left[i] / speed[i] for i in running]
        step = min(events)
        now += step
        for i in running:
            left[i] -= step * speed[i]
            ends[i] = now
    return ends
