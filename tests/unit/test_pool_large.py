"""The goals of a large pool, simulated from a fixed seed (docs/gossip.md has more of them)."""

from __future__ import annotations

import pytest
from omtools.poolsim import scenes

from mig.pool.timing import Timing


def test_a_hundred_nodes_meet_the_goals() -> None:
    f = scenes.Figures(100)
    scenes.calm(f, Timing(), 3, seconds=2, deaths=1)
    _goals(f)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_nodes_meet_the_goals() -> None:
    f = scenes.Figures(1000)
    scenes.calm(f, Timing(), 1, seconds=10, deaths=2)
    _goals(f)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nobody_dies_in_a_thousand_of_stalls_or_of_lost_datagrams() -> None:
    f = scenes.Figures(1000)
    scenes.stalls(f, Timing(), 1, seconds=30)
    scenes.lossy(f, Timing(), 1, 0.1, seconds=30)
    scenes.lossy(f, Timing(), 1, 0.3, seconds=15)
    assert set(f.false_deaths.values()) == {(0, 0)}


def _goals(f: scenes.Figures) -> None:
    ages = sorted(f.ages)
    assert ages[int(len(ages) * 0.95)] <= 5
    assert 2 * f.bytes_s <= 30_000
    assert max(f.death) <= 10 and max(f.leave) <= 3 and max(f.join) <= 10
