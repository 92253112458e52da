"""A mix of 60 short and long jobs started on one of three real nodes: mean slowdown under each policy, reported; only the order is tested.

Slowdown is response over the time that the job takes alone on a node.  Seeded: all policies get the same jobs at the same times.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

COUNT, SPAN = 60, 40.0
"""Jobs, and seconds in which they start."""
CPUS = "0.5"
"""Of each node."""
BUSY = """
import sys, time
need = float(sys.argv[1])
while time.process_time() < need:
    sum(range(2000))
print(need, time.time())
"""
ROWS = {
    "none": ("policy=none", "age_shares=false"),
    "mosix": ("policy=mosix", "age_shares=false"),
    "economy": ("policy=economy", "age_shares=false"),
    "economy, shares by age": ("policy=economy", "age_shares=true"),
}


def stream(seed: int) -> list[tuple[float, float]]:
    """(start, CPU seconds): Poisson, bounded Pareto between 1 and 60 s, about 3 s on average: shorter ones are not worth a move."""
    rng, out, t = random.Random(seed), [], 0.0
    for _ in range(COUNT):
        t += rng.expovariate(COUNT / SPAN)
        u = rng.random()
        out.append((t, 1 / (1 - u * (1 - 1 / 60))))
    return out


def mean_slowdown(lab: Any, jobs: list[tuple[float, float]], quota: float) -> float:
    (lab.path("n1", "/root") / "busy.py").write_text(BUSY)
    begun, started = time.monotonic(), []
    for at, need in jobs:
        time.sleep(max(0.0, begun + at - time.monotonic()))
        started.append((time.time(), need, lab.spawn("n1", ["mosrun", "-q", "python3", "/root/busy.py", f"{need:.3f}"])))
    slow = []
    for t, need, pid in started:
        text = lab.wait_for(lambda pid=pid: len(s := lab.output("n1", pid).split()) == 2 and s, timeout=1200, what=f"the end of {pid}")
        slow.append((float(text[1]) - t) * quota / need)
    return sum(slow) / len(slow)


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_mean_slowdown_of_a_mix_of_jobs(own_lab: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    jobs, result = stream(1), {}
    for name, knobs in ROWS.items():
        # less than the machine has: what the nodes are promised they get, unless others keep it busy
        lab = own_lab("--cpus", CPUS, *(word for k in knobs for word in ("--set", k)))
        quota = float(json.loads(lab.run("n1", "mosctl status --json n1", check=True).stdout)[0]["cpus"])
        result[name] = round(mean_slowdown(lab, jobs, quota), 2)
        print(f"{name}: mean slowdown {result[name]}", flush=True)
        for node in lab.lab.nodes:
            lab.kill(node.name)
    (tmp_path_factory.getbasetemp() / "mix.json").write_text(json.dumps(result))
    assert result["economy"] < result["none"] and result["economy, shares by age"] < result["none"], result


LONG, SHORT, OLD_S = 4, 20, 8.0
"""Loops without end, jobs of one CPU second, and the CPU seconds that each loop has had before the first of them."""


def mean_of_short_ones(lab: Any, quota: float) -> float:
    """Mean slowdown of short jobs that come while long ones keep the node busy."""
    (lab.path("n1", "/root") / "busy.py").write_text(BUSY)
    loops = [lab.spawn("n1", ["mosrun", "-q", "python3", "/root/busy.py", "100000"]) for _ in range(LONG)]

    def old() -> bool:
        rows = json.loads(lab.run("n1", "mosps --json", check=True).stdout)
        return all(float(r["cpu_s"]) > OLD_S for r in rows if r["pid"] in loops)

    lab.wait_for(old, timeout=300, what="the loops are old")
    rng, started = random.Random(2), []
    for _ in range(SHORT):
        time.sleep(rng.expovariate(1 / 3))
        started.append((time.time(), lab.spawn("n1", ["mosrun", "-q", "python3", "/root/busy.py", "1"])))
    slow = []
    for t, pid in started:
        text = lab.wait_for(lambda pid=pid: len(s := lab.output("n1", pid).split()) == 2 and s, timeout=300, what=f"the end of {pid}")
        slow.append((float(text[1]) - t) * quota)
    return sum(slow) / len(slow)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_shares_by_age_let_short_jobs_past_long_ones(own_lab: Any) -> None:
    """On one node, without moves: what the simulator says of shares by age, with real processes."""
    result = {}
    for shares in ("false", "true"):
        lab = own_lab("--cpus", "0.9", "--set", "policy=none", "--set", f"age_shares={shares}", nodes=1)
        result[shares] = round(mean_of_short_ones(lab, 0.9), 2)
        print(f"shares by age {shares}: mean slowdown of the short jobs {result[shares]}", flush=True)
        lab.kill("n1")
    assert result["true"] < 0.7 * result["false"], result
