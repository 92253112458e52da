"""``python -m omtools.sim --decay``: what the knob ``decay`` does, as a table of docs/economy.md.

Loads are smoothed as omdiscd does: a node believes its local load of itself and tells others the advertised one.  Bursts are work of the
machine's own that a sample shows for a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from omtools.sim import rows
from omtools.sim.workload import WORKLOADS
from omtools.sim.world import Rules, World

DECAYS: tuple[float | None, ...] = (None, 0.0, 0.5, 1.0, 2.0, 4.0)
"""None: nothing is smoothed, as in the tables of the goals."""
BURSTS = 0.2
"""Chance of a burst, a second and machine."""


def table(seeds: range = range(4)) -> Iterator[str]:
    """The lines: mean slowdown, and moves a job in brackets."""
    yield "| decay | A | A, bursts | H | H, bursts | H, MOSIX, bursts |"
    yield "|---|---:|---:|---:|---:|---:|"
    for d in DECAYS:
        cells = [_cell(w, Rules("economy", decay=d, bursts=b), seeds) for w in ("A", "H") for b in (0.0, BURSTS)]
        cells.append(_cell("H", Rules("mosix", most=1, decay=d, bursts=BURSTS), seeds))
        yield f"| {'loads as they are' if d is None else f'{d:g}'} | {' | '.join(cells)} |"


def _cell(workload: str, rules: Rules, seeds: range) -> str:
    found = [rows.figures(World(WORKLOADS[workload], rules, s).run()) for s in seeds]
    return f"{mean(f.mean for f in found):.2f} ({mean(f.moves for f in found):.2f})"
