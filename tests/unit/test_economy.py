"""Loads and prices: the formulas at points that can be checked by hand."""

from __future__ import annotations

import pytest

from mig.economy.load import ARRIVAL, TwoLoads
from mig.economy.price import NodeView, added, price, rate, saved, thrash
from mig.model import NodeInfo

MB = 1 << 20


def view(i: int = 1, k: float = 0.0, *, speed: float = 1.0, cpus: float = 1.0, used: int = 0, total: int = 1000 * MB) -> NodeView:
    return NodeView(i, f"n{i}", speed, cpus, k, used, total)


def test_local_load_rises_slowly_and_falls_at_once() -> None:
    x = TwoLoads()
    x.sample(8)
    assert x.local == 3.0 and x.advertised == 8.0
    x.sample(8)
    assert x.local == pytest.approx(3 * 5 / 8 + 3)
    x.sample(1)
    assert x.local == 1.0 and x.advertised == pytest.approx((7 * 8 + 1) / 8)


def test_both_loads_come_to_rest_at_the_sample() -> None:
    x = TwoLoads()
    for _ in range(200):
        x.sample(2.5)
    assert x.local == pytest.approx(2.5) and x.advertised == pytest.approx(2.5)


def test_an_arrival_counts_before_a_sample_has_seen_it() -> None:
    x = TwoLoads()
    x.arrived()
    assert x.local == x.advertised == ARRIVAL
    x.left(5)
    assert x.local == 0.0


def test_rate_is_the_share_of_the_cpus() -> None:
    assert rate(view(k=1)) == 1.0
    assert rate(view(k=4)) == 0.25
    assert rate(view(k=4, cpus=4, speed=2)) == 2.0
    assert rate(view(k=1, cpus=0.6)) == pytest.approx(0.6)
    assert rate(view(k=0.2, cpus=0.6)) == pytest.approx(0.6), "an idle moment does not make a CPU whole"


def test_thrash_has_a_slope_and_an_end() -> None:
    assert thrash(1000, 1000) == 1.0
    assert thrash(1100, 1000) == pytest.approx(2.0)
    assert thrash(9000, 1000) == 4.0
    assert thrash(9000, 0) == 1.0, "unknown memory never thrashes"


def test_price_of_an_empty_node_is_nothing_and_grows_with_the_square_of_the_queue() -> None:
    assert price(view(k=0), 3) == 0.0
    assert price(view(k=1), 3) == pytest.approx(1 + 1 / 3)
    assert price(view(k=4), 3) == pytest.approx(16 + 1 / 3)


def test_full_memory_costs_more_than_empty() -> None:
    assert price(view(k=1, used=1000 * MB), 8) > price(view(k=1, used=100 * MB), 8)


def test_an_idle_fast_cpu_is_better_than_two_slow_ones() -> None:
    assert added(view(speed=2), 1, MB, 3) < added(view(speed=1, cpus=2), 1, MB, 3)


def test_what_leaves_saves_what_it_added() -> None:
    v = view(k=2, used=100 * MB)
    assert saved(v.plus(1, 50 * MB), 1, 50 * MB, 4) == pytest.approx(added(v, 1, 50 * MB, 4))


def test_a_view_of_an_entry_turns_load_back_into_threads() -> None:
    n = NodeInfo(3, "n3", "10.0.0.3", speed=2.0, cpus=4.0, load=0.5, mem_total=100, mem_free=30)
    v = NodeView.of(n, extra_k=1, extra_mem=5)
    assert (v.k, v.used, v.total) == (5.0, 75, 100)
    assert v.fits(25) and not v.fits(26)
