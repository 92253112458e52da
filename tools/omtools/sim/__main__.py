"""``python -m omtools.sim``: run every row on the published seeds and write the table and the plot of ``docs/economy.md``.

Results go to a file of JSON lines as they come, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from omtools.sim import decay, report, rows
from omtools.sim.workload import WORKLOADS

SLOW_ROWS = ("none", "round robin", "MOSIX", "economy, started at home", "economy, placed")


def fresh(seeds: range) -> list[tuple[str, str, int, float]]:
    """As :func:`plan`, only what the goals need, on seeds that were never used."""
    return [x for x in plan(seeds) if x[1] in report.IN_GOALS]


def plan(seeds: range) -> list[tuple[str, str, int, float]]:
    """(workload, row, seed, bandwidth or 0) of every run."""
    out: list[tuple[str, str, int, float]] = []
    for w in WORKLOADS.values():
        names = [n for n, r in rows.ROWS.items() if not (isinstance(r, str) and (w.burst or w.owners))]
        out += [(w.name, n, s, 0.0) for n in names for s in seeds]
        if w.name in ("A", "H"):
            out += [(w.name, n, s, rows.SLOW) for n in SLOW_ROWS for s in seeds]
    return sorted(out, key=lambda x: (x[3] > 0, WORKLOADS[x[0]].rate > 1.0, x[2]))  # what shows an error first comes first


def main() -> int:
    """The whole thing, half an hour on two CPUs."""
    p = argparse.ArgumentParser(prog="omtools.sim", description="simulate the economy and write docs/economy.md's table and plot")
    p.add_argument("--seeds", type=int, default=len(rows.SEEDS), help="only the first N seeds (default: all)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="simulations at once (default: one a CPU)")
    p.add_argument("--results", type=Path, default=Path("build/economy.jsonl"), help="where results are kept")
    p.add_argument("--fresh", action="store_true", help="forget results of an earlier run")
    p.add_argument("--docs", type=Path, default=Path("docs"), help="where economy.md lies")
    p.add_argument("--decay", action="store_true", help="only print the table of what the knob decay does (a minute)")
    a = p.parse_args()
    if a.decay:
        print(*decay.table(), sep="\n")
        return 0
    a.results.parent.mkdir(parents=True, exist_ok=True)
    if a.fresh:
        a.results.unlink(missing_ok=True)
    done = load(a.results)
    todo = [x for x in (*plan(rows.SEEDS[: a.seeds]), *fresh(rows.FRESH[: a.seeds])) if x not in done]
    print(f"{len(done)} runs known, {len(todo)} to do", flush=True)
    with ProcessPoolExecutor(a.jobs) as pool, open(a.results, "a") as out:
        waiting = {pool.submit(rows.run, *x): x for x in todo}
        for f in as_completed(waiting):
            done[waiting[f]] = f.result()
            print(json.dumps([*waiting[f], f.result()]), file=out, flush=True)
    table = report.Table({k: r for k, r in done.items() if k[2] in rows.SEEDS}, {k: r for k, r in done.items() if k[2] in rows.FRESH})
    report.write(a.docs, table)
    print(table.text())
    return 0 if all(g.met for g in table.goals()) else 1


def load(path: Path) -> dict[tuple[str, str, int, float], dict[str, Any]]:
    """Results of an earlier run."""
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {(w, n, s, b): r for w, n, s, b, r in lines}


if __name__ == "__main__":
    sys.exit(main())
