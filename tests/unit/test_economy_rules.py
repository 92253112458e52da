"""The rest of the economy as pure functions: policies, the manager, memory, I/O, learnt costs, shares by age, efficiency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omdiscd.places import Places

from mig.config import Config
from mig.economy import efficiency, manager, shares, usher, words
from mig.economy.gaps import HORIZON_S, Gaps, lasts
from mig.economy.judge import Candidate, Knobs, judge
from mig.economy.load import TwoLoads
from mig.economy.manager import Ask, Enact
from mig.economy.measured import Measured
from mig.economy.policies import BUILT_IN, Policy, Situation, Suggestion, make, names
from mig.economy.price import NodeView
from mig.errors import BadInput

MB = 1 << 20
K = Knobs()


def node(i: int, k: float, *, speed: float = 1.0, cpus: float = 1.0, used: int = 0, total: int = 4000 * MB) -> NodeView:
    return NodeView(i, f"n{i}", speed, cpus, k, used, total)


def proc(pid: int = 100, *, cpu_s: float = 5.0, rss: int = 10 * MB, **kwargs: Any) -> Candidate:
    return Candidate(pid, "awk", cpu_s, rss, **kwargs)


def decide(
    policy: Policy, s: Situation, live: dict[int, NodeView | None], *, enacts: bool = True
) -> tuple[list[int], list[tuple[int, int]]]:
    """Drive one decision; returns the nodes asked and the (pid, node) moved."""
    decision = manager.Dialogue(manager.moves(policy, s))
    asked, moved = [], []
    while (step := decision.step) is not None:
        if isinstance(step, Ask):
            asked.append(step.node)
            decision.answer(live[step.node])
        else:
            assert isinstance(step, Enact)
            moved.append((step.candidate.pid, step.target.id))
            decision.answer(enacts)
    return asked, moved


# -- the manager ----------------------------------------------------------------------------------------------------------------------


def test_gossip_preselects_and_the_target_has_the_last_word() -> None:
    s = Situation(node(1, 3), [node(2, 0), node(3, 0.5)], [proc()], K)
    assert decide(make("economy"), s, {2: node(2, 0), 3: node(3, 0.5)}) == ([2], [(100, 2)])
    assert decide(make("economy"), s, {2: node(2, 4), 3: node(3, 0)}) == ([2, 3], [(100, 3)]), "2 filled up meanwhile"
    assert decide(make("economy"), s, {2: None, 3: None}) == ([2, 3], [])


def test_no_more_targets_are_asked_than_three() -> None:
    others = [node(i, 0.1 * i) for i in range(2, 9)]
    asked, moved = decide(make("economy"), Situation(node(1, 9), others, [proc()], K), {n.id: None for n in others})
    assert asked == [2, 3, 4] and not moved


def test_two_moves_a_decision_and_the_second_knows_of_the_first() -> None:
    mine = [proc(p) for p in range(100, 104)]
    live: dict[int, NodeView | None] = {2: node(2, 0), 3: node(3, 0)}
    _, moved = decide(make("economy"), Situation(node(1, 4), [node(2, 0), node(3, 0)], mine, K), live)
    assert moved == [(100, 2), (101, 3)]


def test_a_move_that_cannot_begin_is_passed_over() -> None:
    mine = [proc(p) for p in (100, 101)]
    _, tried = decide(make("economy"), Situation(node(1, 2), [node(2, 0)], mine, K), {2: node(2, 0)}, enacts=False)
    assert tried == [(100, 2), (101, 2)]


def test_a_policy_cannot_do_more_than_suggest() -> None:
    class Greedy(Policy):
        name = "greedy"
        priced = True

        def suggest(self, s: Situation) -> Iterator[Suggestion]:
            for c in s.candidates:
                for t in s.others:
                    yield Suggestion(c, t)

    s = Situation(node(1, 1), [node(2, 0)], [proc()], K)
    assert decide(Greedy(), s, {2: node(2, 0)}) == ([2], []), "it does not pay"


# -- starts ---------------------------------------------------------------------------------------------------------------------------


def start(policy: Policy, s: Situation, live: dict[int, NodeView]) -> int:
    """The node that comes first; all are asked as they are in ``live``."""
    decision = manager.Dialogue(manager.start(policy, proc(rss=50 * MB, placed=True), s))
    while (ask := decision.step) is not None:
        decision.answer(live[ask.node])
    assert decision.result
    return decision.result[0].id


def test_equal_nodes_start_it_here() -> None:
    s = Situation(node(1, 0, used=200 * MB), [node(2, 0, used=100 * MB)], (), K)
    assert start(make("economy"), s, {2: node(2, 0, used=100 * MB)}) == 1


def test_a_burst_of_100_spreads_by_power_though_gossip_stands_still() -> None:
    """Places promised count at once, so that not all of them see the same free node."""
    powers = {1: (1.0, 1.0), 2: (1.0, 2.0), 3: (2.0, 1.0), 4: (0.5, 2.0)}
    promised = {i: Places(most_starts=1000) for i in powers}
    gossip = {i: node(i, 0, speed=s, cpus=c) for i, (s, c) in powers.items()}
    for job in range(100):
        live = {i: v.plus(*promised[i].hidden(lambda pid: 0.0)) for i, v in gossip.items()}
        s = Situation(live[1], [gossip[i] for i in (2, 3, 4)], (), K)
        promised[start(make("economy"), s, live)].hold(0.0, f"1-{job}", 1.0, 1 * MB)
    counts = {i: len(p.held) for i, p in promised.items()}
    assert sum(counts.values()) == 100
    for i, (speed, cpus) in powers.items():
        assert counts[i] == pytest.approx(100 * speed * cpus / 6, abs=4), counts


def test_round_robin_goes_round() -> None:
    policy = make("roundrobin")
    nodes = [node(i, 9 if i == 2 else 0) for i in (1, 2, 3)]
    s = Situation(nodes[0], nodes[1:], (), K)
    assert [start(policy, s, {n.id: n for n in nodes}) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_policy_starts_a_job_somewhere_and_survives_a_lonely_node(name: str) -> None:
    assert start(make(name), Situation(node(1, 3), [], (), K), {}) == 1
    assert decide(make(name), Situation(node(1, 3), [], [proc()], K), {}) == ([], [])


# -- the other policies ---------------------------------------------------------------------------------------------------------------


def test_mosix_sends_its_second_busiest_to_the_least_loaded_if_that_is_stable() -> None:
    mine = [proc(1, busy=0.9), proc(2, busy=0.8), proc(3, busy=0.1)]
    s = Situation(node(1, 3), [node(2, 1.5), node(3, 1)], mine, K, local=3.0)
    assert decide(make("mosix"), s, {})[1][0] == (2, 3)
    s = Situation(node(1, 2), [node(2, 1)], mine, K, local=2.0)
    assert decide(make("mosix"), s, {}) == ([], []), "1 + 1.30 is no better than 2"


def test_epvm_lowers_the_sum_of_prices_and_its_largest_load_never_falls() -> None:
    policy = BUILT_IN["epvm"]()
    s = Situation(node(1, 6), [node(2, 0), node(3, 3)], [proc()], K)
    assert decide(policy, s, {2: node(2, 0), 3: node(3, 3)})[1] == [(100, 2)]
    assert policy.largest == 8.0  # type: ignore[attr-defined]  # of EPvm
    decide(policy, Situation(node(1, 1), [node(2, 0)], [proc()], K), {2: node(2, 0)})
    assert policy.largest == 8.0  # type: ignore[attr-defined]


def test_none_moves_nothing() -> None:
    assert decide(make("none"), Situation(node(1, 9), [node(2, 0)], [proc()], K), {}) == ([], [])


def test_unknown_policies_are_bad_input_with_a_proposal() -> None:
    with pytest.raises(LookupError, match="known: economy, epvm, mosix"):
        make("econmy")
    with pytest.raises(BadInput) as e:
        Config.from_map({"policy": "econmy"})
    assert "did you mean 'economy'" in e.value.reasons[0]
    assert Config.from_map({"policy": "mosix"}).policy == "mosix"
    assert {"economy", "mosix", "epvm", "roundrobin", "none"} <= set(names())


# -- memory ---------------------------------------------------------------------------------------------------------------------------


def test_short_of_memory_the_smallest_sufficient_process_goes_to_where_it_fits_best() -> None:
    full = node(1, 3, used=3950 * MB)
    mine = [proc(1, rss=500 * MB), proc(2, rss=60 * MB), proc(3, rss=20 * MB)]
    tight, roomy = node(2, 0, used=3960 * MB), node(3, 2, used=100 * MB)
    s = Situation(full, [tight, roomy], mine, Knobs(mem_reserve=100 * MB))
    assert usher.shortage(full, 100 * MB) == 50 * MB
    _, moved = decide(make("economy"), s, {2: tight, 3: roomy})
    assert moved[0] == (2, 3), "though by load alone it would stay"


def test_where_none_suffices_the_largest_goes_and_mosix_ushers_too() -> None:
    assert [c.pid for c in usher.order([proc(1, rss=5), proc(2, rss=9), proc(3, rss=7)], 8)] == [2, 3, 1]
    assert [c.pid for c in usher.order([proc(1, rss=5), proc(2, rss=6)], 8)] == [2, 1]
    s = Situation(node(1, 1, used=4100 * MB), [node(2, 0, used=3000 * MB), node(3, 0)], [proc(rss=200 * MB)], K, local=1.0)
    assert decide(make("mosix"), s, {})[1] == [(100, 2)], "the tightest fit"


def test_nothing_is_ushered_to_where_it_does_not_fit() -> None:
    full = node(1, 2, used=4100 * MB)
    assert decide(make("economy"), Situation(full, [node(2, 0)], [proc(rss=300 * MB)], K), {2: node(2, 0, used=3900 * MB)}) == ([2], [])


# -- I/O with home --------------------------------------------------------------------------------------------------------------------


def test_a_guest_whose_io_goes_home_is_drawn_home() -> None:
    here, home = node(1, 1), node(2, 0)
    assert not judge(here, home, proc(home="n2"), K, 2).pays, "without I/O it has no reason"
    v = judge(here, home, proc(home="n2", drag=0.6, cpu_s=20.0), K, 2)
    assert v.pays and v.r_here == pytest.approx(0.4) and v.r_there == 1.0
    (x,) = [x for x in make("economy").suggest(Situation(here, [home], [proc(home="n2", drag=0.6, cpu_s=20.0)], K))]
    assert x.kind == "home"


def test_at_home_the_same_io_keeps_a_process_from_leaving() -> None:
    busy, idle = node(1, 2), node(2, 0)
    assert judge(busy, idle, proc(home="n1"), K, 2).pays
    assert not judge(busy, idle, proc(home="n1", drag=0.6), K, 2).pays


# -- learnt costs ---------------------------------------------------------------------------------------------------------------------


def test_costs_are_learnt_from_moves_and_bounded() -> None:
    m = Measured(K)
    for _ in range(40):
        m.learn(pause_s=0.05, total_s=0.35, sent=1 * MB, rss=2 * MB)
    assert m.knobs.setup_s == pytest.approx(0.3, abs=0.01) and m.knobs.freeze_s == pytest.approx(0.05, abs=0.01)
    for _ in range(40):
        m.learn(pause_s=0.05, total_s=10.3, sent=100_000_000, rss=50_000_000)
    assert m.knobs.bandwidth == pytest.approx(10e6, rel=0.05) and m.dirty == pytest.approx(2.0, rel=0.01)
    before = m.knobs
    for nonsense in (-1.0, 0.0, 1e9):
        m.learn(pause_s=0.05, total_s=nonsense, sent=1, rss=1)
    assert m.knobs == before


def test_what_the_helpers_of_a_move_take_from_others_counts() -> None:
    """Between two crowded nodes the difference is small and the helpers hold up many: the young stay, the old go."""
    k = replace(K, move_cpu_s=1.0)
    here, there = node(1, 10), node(2, 5)
    v = judge(here, there, proc(cpu_s=0.5), k, 2)
    assert v.why_not == "helpers" and v.held_up == pytest.approx(0.5 * (10 + 6))
    assert "hold up" in words.reason(proc(cpu_s=0.5), there, v) and words.verdict(v).startswith("holds up")
    assert judge(here, there, proc(cpu_s=10.0), k, 2).pays
    m = Measured(k)
    for _ in range(40):
        m.learn(pause_s=0.05, total_s=0.35, sent=1 * MB, rss=2 * MB, cpu_s=3.0)
    assert m.knobs.move_cpu_s == pytest.approx(3.0, abs=0.01)
    assert judge(here, there, proc(cpu_s=0.5), m.knobs, 2).held_up == pytest.approx(1.5 * (10 + 6), rel=0.01)
    many = node(2, 3, cpus=8)
    assert judge(node(1, 4), many, proc(), k, 2).held_up == pytest.approx(0.5 * 4), "idle CPUs there take nobody's time"


def test_what_a_difference_is_worth_depends_on_how_long_it_has_lasted() -> None:
    """An old process on a slow line: not for an instant's gap, but for one that has lasted; a small one goes at once."""
    slow = replace(K, bandwidth=12.5e6)
    here, there, old = node(1, 3), node(2, 1), proc(cpu_s=500.0, rss=400 * MB)
    assert judge(here, there, old, slow, 2, lasted=0.0).why_not == "gain"
    assert judge(here, there, old, slow, 2, lasted=120.0).pays and judge(here, there, old, slow, 2).pays
    assert judge(here, there, proc(cpu_s=500.0), slow, 2, lasted=0.0).pays


def test_a_gap_begins_anew_when_it_was_closed() -> None:
    g, me = Gaps(), node(1, 3)
    assert g.look(10.0, me, [node(2, 0), node(3, 3)]) == {2: 0.0, 3: 0.0}
    assert g.look(25.0, me, [node(2, 1), node(3, 0)]) == {2: 15.0, 3: 0.0}
    assert g.look(26.0, me, [node(2, 3), node(3, 0)]) == {2: 0.0, 3: 1.0}
    assert g.lasted(28.0, (2, 3, 4)) == {2: 0.0, 3: 3.0, 4: 0.0} and g.lasted(26.0, (3,)) == {3: 1.0}, "to ask changes nothing"
    assert g.look(30.0, me, [node(2, 0)]) == {2: 0.0}
    assert g.look(40.0, node(1, 0), [node(2, 0)]) == {2: 0.0}, "where nothing runs no place is better"
    g.look(50.0, me, [node(2, 0)])
    g.forget()
    assert g.look(60.0, me, [node(2, 0)]) == {2: 0.0}, "what was while nobody looked does not count"
    assert lasts(0.0) == lasts(HORIZON_S) == HORIZON_S and lasts(100.0) == 100.0


def test_what_the_pool_gains_decides_not_what_the_process_gains() -> None:
    """One of five on four fast CPUs runs a little slower on an idle slow one, and the other four run faster."""
    v = judge(node(1, 5, speed=1.5, cpus=4), node(2, 0, cpus=2), proc(), replace(K, epsilon_home=0.2), 8)
    assert v.pays and v.r_there < v.r_here


def test_a_process_that_is_written_to_all_the_time_costs_more_to_send() -> None:
    calm, busy = (judge(node(1, 2), node(2, 0), proc(rss=1000 * MB, dirty=d), K, 2) for d in (1.0, 3.0))
    assert busy.send_s == pytest.approx(3 * calm.send_s) and busy.cost > calm.cost


# -- shares, loads, efficiency --------------------------------------------------------------------------------------------------------


def test_share_falls_with_age() -> None:
    assert [shares.share(t) for t in (0, 4, 8, 40, 1e6)] == [1, 1, 0.5, 0.1, 0.02]


def test_decay_scales_the_memory_of_the_loads() -> None:
    now, slow = TwoLoads(decay=0.0), TwoLoads(decay=2.0)
    for x in (now, slow):
        x.sample(8)
    assert now.local == 8.0 and slow.local == pytest.approx(3 * 8 / 13)
    for x in (now, slow):
        x.sample(0)
    assert now.advertised == 0.0 and slow.advertised == pytest.approx(14 * 8 / 15)


@pytest.mark.parametrize(
    ("loads", "expected"),
    [((0, 0, 0), 1.0), ((1, 0, 0), 1.0), ((2, 0, 0), 0.5), ((3, 3, 4), 1.0), ((10, 0, 0), 0.4), ((2, 1, 1), 1.0)],
)
def test_efficiency_is_what_whole_processes_allow(loads: tuple[int, ...], expected: float) -> None:
    assert efficiency.efficiency([node(i, k) for i, k in enumerate(loads)]) == pytest.approx(expected)


def test_efficiency_knows_of_speed() -> None:
    fair = [node(1, 4, speed=2.0), node(2, 2), node(3, 1, speed=0.5)]
    assert efficiency.efficiency(fair) == 1.0
    assert efficiency.efficiency([node(1, 1, speed=2.0), node(2, 3), node(3, 3, speed=0.5)]) < 0.4


# -- words ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there", "c", "said"),
    [
        (node(1, 2), node(2, 0), proc(), "gains"),
        (node(1, 1), node(2, 0), proc(), "no better"),
        (node(1, 2), node(2, 0), proc(rss=500 * MB, cpu_s=0.1), "too little"),
        (node(1, 3), node(2, 1), proc(placed=True), "must save"),
        (node(1, 2), node(2, 0, used=3999 * MB), proc(), "no room"),
    ],
)
def test_verdicts_in_words(here: NodeView, there: NodeView, c: Candidate, said: str) -> None:
    v = judge(here, there, c, K, 2)
    assert said in words.verdict(v) and len(words.verdict(v)) <= 24
    assert set(words.figures(v)) >= {"gain_s", "cost_s", "saved", "added"}
    assert there.name in words.reason(c, there, v)


def test_a_policy_of_another_distribution_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "strange_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[openmosix.policies]\nidle = strange_policies:Idle\nwrong = strange_policies:Wrong\n")
    (tmp_path / "strange_policies.py").write_text(
        "from mig.economy.policies import Policy, Suggestion\n"
        "class Idle(Policy):\n"
        "    name, asks, priced = 'idle', 3, True\n"
        "    def suggest(self, s):\n"
        "        for c in s.candidates:\n"
        "            yield from (Suggestion(c, t) for t in s.others if t.k < 0.5)\n"
        "class Wrong: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert Config.from_map({"policy": "idle"}).policy == "idle"
    s = Situation(node(1, 3), [node(2, 1), node(3, 0)], [proc()], K)
    assert decide(make("idle"), s, {3: node(3, 0)}) == ([3], [(100, 3)])
    with pytest.raises(TypeError, match="not a Policy"):
        make("wrong")
