"""The classic: ten loops start on one of three equal nodes.  After how long are they spread, and when have all ended?

Beside it stands the ideal, really run: 4-3-3 from the first moment, each started where it is to stay.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import time
from dataclasses import dataclass

from mig.errors import MigError
from omtools.bench.lab import up
from omtools.client import Client
from omtools.moslab import enter, ready
from omtools.moslab import lab as labs

JOBS = 10
CPUS = 0.6
"""Of each node: all three together get less than a machine of two CPUs has, which the helpers need as well."""
LOOPS, LOOPS_QUICK = 40000, 1000
_AWK = "BEGIN {{for(i=0;i<{loops};i++)for(j=0;j<20000;j++);}}"
_END = 600.0


@dataclass(frozen=True)
class Spread:
    """Seconds: until they were spread (0: never), until all had ended, and what the ideal would have taken; and the moves made."""

    spread: float
    total: float
    ideal: float
    moves: int


def seconds(s: float) -> str:
    """A time for the table."""
    return f"{s:.1f}" if s else "never"


def measure(*, quick: bool = False) -> Spread:
    """One run in a lab of its own; raises :class:`MigError`."""
    awk = ["mosrun", "awk", _AWK.format(loops=LOOPS_QUICK if quick else LOOPS)]
    with up("--cpus", str(CPUS), "--set", "auto=mosrun") as lab, Client(ready.tree(lab, lab.node("n1")) / ready.CONTROL) as client:
        time.sleep(3)  # nodes have told each other what they are
        began = time.monotonic()
        _run(lab, client, [*awk[:1], "-L", *awk[1:]], [lab.nodes[i % len(lab.nodes)] for i in range(JOBS)])
        ideal = time.monotonic() - began
        began = time.monotonic()
        spread, moves = _run(lab, client, awk, [lab.nodes[0]] * JOBS)
        total = time.monotonic() - began
    return Spread(spread, total, ideal, moves)


def _run(lab: labs.Lab, client: Client, argv: list[str], at: list[labs.Node]) -> tuple[float, int]:
    """Start one on each of ``at`` and wait for the end of all; when n1's were spread, and how often they moved."""
    began, spread, moves = time.monotonic(), 0.0, dict[int, int]()
    with contextlib.ExitStack() as stack:
        nothing = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, nothing)
        jobs = [enter.Running(lab, node, argv, stdio=[nothing] * 3, cwd="/") for node in at]
        for job in jobs:
            stack.callback(job.close)
        pids, left = {job.pid for job in jobs}, jobs
        while left := [job for job in left if not select.select([job.conn], [], [], 0)[0]]:
            rows = [g for g in client.call("guests", all=True)["guests"] if g["pid"] in pids and g["home"] == "n1"]
            for g in rows:  # one that has just ended is a job that never moved, for a moment
                moves[g["pid"]] = max(moves.get(g["pid"], 0), int(g["nmigs"]))
            running = collections.Counter(str(g["where"]) for g in rows if g["state"] == "running")
            counts = [running[n.name] for n in lab.nodes]
            if not spread and sum(counts) == len(at) and max(counts) - min(counts) <= 1:
                spread = time.monotonic() - began
            if time.monotonic() - began > _END:
                raise MigError(f"{len(left)} of {len(at)} jobs have not ended after {_END:g} s")
            time.sleep(0.1)
        if any(job.wait() for job in jobs):
            raise MigError("a job has failed")
    return spread, sum(moves.values())
