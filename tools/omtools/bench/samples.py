"""One measurement, and what many of them say together: pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

HERE_TO_N2, ONWARD, HOME = "home to n2", "n2 to n3", "n3 to home"
OURS = (HERE_TO_N2, ONWARD, HOME)
CRIU, RUNC = "CRIU dump, copy, restore", "runc checkpoint, copy, restore"
PEERS = (CRIU, RUNC)
LAZY = "CRIU lazy-pages"
"""Measured over the gigabit link only."""


@dataclass(frozen=True)
class Sample:
    """One move of a process with ``mib`` of memory in round ``round``.  Milliseconds.

    ``felt``: the longest gap in the process's own clock.  ``said``: the pause that the mover reports (0: it does not).  ``total``: from
    the order to the answer.  ``prepare``: the part of it before the process stands still.  ``steps``: by name what parts took.
    """

    what: str
    mib: int
    round: int
    felt: float
    total: float
    said: float = 0.0
    prepare: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Medians of the samples of one kind and size; ``low`` and ``high`` are the least and greatest ``felt``."""

    what: str
    mib: int
    runs: int
    felt: float
    low: float
    high: float
    said: float
    total: float
    prepare: float
    steps: dict[str, float]


def row(samples: Sequence[Sample]) -> Row:
    """The medians of samples of the same kind and size, at least one."""
    felt = [s.felt for s in samples]
    names = {name: None for s in samples for name in s.steps}
    return Row(
        what=samples[0].what,
        mib=samples[0].mib,
        runs=len(samples),
        felt=statistics.median(felt),
        low=min(felt),
        high=max(felt),
        said=statistics.median(s.said for s in samples),
        total=statistics.median(s.total for s in samples),
        prepare=statistics.median(s.prepare for s in samples),
        steps={name: statistics.median(s.steps.get(name, 0.0) for s in samples) for name in names},
    )


def rows(samples: Sequence[Sample]) -> list[Row]:
    """A row for each kind and size that there is, by size and in the order of the kinds."""
    found: dict[tuple[int, int], list[Sample]] = {}
    order = (*OURS, *PEERS)
    for s in samples:
        found.setdefault((s.mib, order.index(s.what)), []).append(s)
    return [row(found[key]) for key in sorted(found)]


def ratio(samples: Sequence[Sample], peer: str, mib: int) -> float | None:
    """How many times longer the pause of ``peer`` is than that of our first move: the median over rounds of the ratio within each.

    What disturbs a machine disturbs a whole round, so ratios within a round say more than a ratio of medians.  None: no common round.
    """
    ours = {s.round: s.felt for s in samples if s.what == HERE_TO_N2 and s.mib == mib}
    found = [s.felt / ours[s.round] for s in samples if s.what == peer and s.mib == mib and ours.get(s.round)]
    return statistics.median(found) if found else None
