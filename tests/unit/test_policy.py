"""The rule: what moves where, what stays, and that nothing goes back and forth."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from omdiscd.admission import admit
from omdiscd.places import HELD, Places

from mig.config import Config
from mig.economy import words
from mig.economy.policies import Situation, Suggestion
from mig.economy.policies import economy as rule
from mig.economy.policy import Candidate, Knobs, judge, order_for_start, prices
from mig.economy.price import NodeView
from mig.model import NodeInfo, ProcessFacts

MB = 1 << 20
K = Knobs()


def node(i: int, k: float, *, speed: float = 1.0, cpus: float = 1.0, used: int = 0, total: int = 4000 * MB) -> NodeView:
    return NodeView(i, f"n{i}", speed, cpus, k, used, total)


def proc(pid: int = 100, *, cpu_s: float = 5.0, rss: int = 10 * MB, **kwargs: object) -> Candidate:
    return Candidate(pid, "awk", cpu_s, rss, **kwargs)  # type: ignore[arg-type]  # test shorthand


def propose(me: NodeView, others: list[NodeView], candidates: list[Candidate], knobs: Knobs) -> list[Suggestion]:
    return rule.propose(Situation(me, others, candidates, knobs))


def test_one_of_two_goes_to_an_idle_node_and_says_why() -> None:
    (p, *_) = propose(node(1, 2), [node(2, 0)], [proc()], K)
    v = p.verdict
    assert v is not None and p.target.name == "n2" and v.gain > 0 and v.saved > v.added
    assert "1.00 CPU a thread on n2, 0.50 here" in words.reason(p.candidate, p.target, v)


def test_alone_on_an_equal_node_it_stays() -> None:
    assert propose(node(1, 1), [node(2, 0)], [proc()], K) == []


def test_alone_on_a_slow_node_it_goes_to_a_fast_one_and_not_back() -> None:
    slow, fast = node(1, 1, speed=0.5), node(2, 0)
    assert propose(slow, [fast], [proc()], K)
    assert propose(node(2, 1), [node(1, 0, speed=0.5)], [proc()], K) == []


def test_fractions_of_a_cpu() -> None:
    assert propose(node(1, 2, cpus=0.6), [node(2, 0, cpus=0.6)], [proc()], K)
    assert propose(node(1, 1, cpus=0.6), [node(2, 0, cpus=0.6)], [proc()], K) == []


def test_a_lagging_load_does_not_hide_the_process_itself() -> None:
    v = judge(node(1, 0.1, speed=0.5), node(2, 0), proc(), K, 2)
    assert v.pays


def test_young_processes_stay_when_the_transfer_costs_more_than_they_can_gain() -> None:
    young = proc(cpu_s=0.05, rss=2000 * MB)
    assert propose(node(1, 2), [node(2, 0)], [young], K) == []
    v = judge(node(1, 2), node(2, 0), young, K, 2)
    assert v.why_not == "gain" and "the move costs" in words.reason(young, node(2, 0), v)


def test_it_must_fit() -> None:
    big, full = proc(rss=50 * MB), node(2, 0, used=3999 * MB)
    v = judge(node(1, 2), full, big, K, 2)
    assert not v.pays and "no room" in words.reason(big, full, v)


def test_placed_jobs_move_less() -> None:
    here, there = node(1, 3), node(2, 1)
    assert judge(here, there, proc(), K, 2).pays
    assert not judge(here, there, proc(placed=True), K, 2).pays


def test_only_the_named_nodes() -> None:
    (p,) = propose(node(1, 3), [node(2, 0), node(3, 0)], [proc(only=frozenset({"n3"}))], K)
    assert p.target.name == "n3"


def test_the_most_gain_for_each_second_of_the_move_goes_first_and_ties_are_decided_by_numbers() -> None:
    big, small, old = proc(1, rss=500 * MB), proc(2), proc(3, cpu_s=50.0)
    order = [p.candidate.pid for p in propose(node(1, 3), [node(2, 0)], [big, small, old], K)]
    assert order == [3, 2, 1]
    twins = propose(node(1, 3), [node(3, 0), node(2, 0)], [proc(8), proc(7)], K)
    assert [(p.candidate.pid, p.target.id) for p in twins] == [(7, 2), (7, 3), (8, 2), (8, 3)]


def test_a_large_one_with_threads_gets_its_turn_before_many_small_ones() -> None:
    """The demonstration: POV-Ray with two threads beside fresh loops; by gain for each byte it stayed behind for ever."""
    pov, loops = proc(1, cpu_s=2.1, rss=30 * MB, threads=2.0), [proc(p, cpu_s=0.2, rss=2 * MB) for p in (2, 3, 4)]
    first = propose(node(1, 5, cpus=0.6), [node(2, 1, cpus=0.6), node(3, 0, cpus=0.6)], [*loops, pov], K)[0]
    assert (first.candidate.pid, first.target.name) == (1, "n3")


def test_threads_count() -> None:
    four = proc(threads=3.9)
    v = judge(node(1, 4), node(2, 0, cpus=4), four, K, 2)
    assert v.pays
    assert not judge(node(1, 4, cpus=4), node(2, 0, cpus=1), four, K, 2).pays


@pytest.mark.parametrize("seed", range(20))
def test_no_ping_pong_and_an_end(seed: int) -> None:
    """Whatever the start, equal processes come to rest, with no process moved twice to where it was."""
    rng = random.Random(seed)
    shape = [(rng.choice([0.5, 1.0, 2.0]), rng.choice([0.6, 1.0, 2.0])) for _ in range(4)]
    at = {pid: rng.randrange(4) for pid in range(12)}
    seen = {pid: [home] for pid, home in at.items()}

    def view(i: int) -> NodeView:
        return node(i, sum(1 for x in at.values() if x == i), speed=shape[i][0], cpus=shape[i][1])

    for _ in range(60):
        before = dict(at)
        for i in range(4):
            mine = [proc(p, cpu_s=20.0) for p, x in at.items() if x == i]
            for p in propose(view(i), [view(j) for j in range(4) if j != i], mine, K)[:1]:
                at[p.candidate.pid] = p.target.id
                seen[p.candidate.pid].append(p.target.id)
        if at == before:
            break
    else:
        pytest.fail("it never came to rest")
    for path in seen.values():
        assert len(path) == len(set(path)), path


def unseen(pid: int) -> float:
    """What samples show of a guest: nothing yet."""
    return 0.0


def test_two_nodes_that_both_see_an_idle_one() -> None:
    """Both ask; the second learns of the first one's reservation and stays."""
    places = Places()
    idle = node(3, 0)
    moved = []
    for who, here in (("1-100", node(1, 2)), ("2-100", node(2, 2))):
        k, mem = places.hidden(unseen, but=who)
        if judge(here, idle.plus(k, mem), proc(), K, 3).pays:
            places.hold(0.0, who, 1.0, 10 * MB)
            moved.append(who)
    assert moved == ["1-100"]


def test_promises_end() -> None:
    places = Places()
    places.hold(0.0, "a", 1.0, 5)
    places.hold(1.0, "b", 2.0, 6)
    assert places.hidden(unseen) == (3.0, 11)
    assert places.hidden(unseen, but="a") == (2.0, 6)
    places.tidy(HELD + 0.5, {}, lambda keeper: True)
    assert places.hidden(unseen) == (2.0, 6)
    places.release("b")
    assert places.hidden(unseen) == (0.0, 0)


def test_a_guest_counts_until_samples_have_seen_it() -> None:
    """A node looked free between a guest's arrival and the sample that first saw it run, and got a second one within a second."""
    places = Places(sample_s=1.0)
    places.hold(0.0, "1-100", 2.0, 10 * MB)
    places.come(0.1, 7, "1-100", 10 * MB)
    assert places.hidden(unseen) == (2.0, 10 * MB), "on its way"
    places.tidy(0.5, {7: 4711}, lambda keeper: True)
    assert places.hidden(unseen) == (2.0, 0), "it runs, no sample has seen it, its memory is seen at once"
    assert places.hidden(lambda pid: 0.7 if pid == 4711 else 0.0) == (pytest.approx(1.3), 0), "one has seen a part of it"
    assert places.hidden(lambda pid: 2.1)[0] == 0.0
    places.tidy(3.1, {7: 4711}, lambda keeper: True)
    assert places.hidden(unseen) == (0.0, 0), "what samples show now is the truth"


def test_what_is_on_its_way_is_forgotten_when_its_keeper_ends() -> None:
    places = Places()
    places.come(0.0, 7, "1-100", 10 * MB)
    places.tidy(0.1, {}, lambda keeper: False)
    assert places.hidden(unseen) == (0.0, 0)


def test_two_moves_at_once_and_eight_starts() -> None:
    places = Places(most=2, most_starts=3)
    places.hold(0.0, "a", 1.0, 0)
    places.come(0.0, 7, "b", 0)
    assert "2 guests are on their way" in places.full(start=False)
    assert not places.full(start=False, but="a") and not places.full(start=True)
    for who in "cde":
        places.hold(0.0, who, 1.0, 0, start=True)
    assert "3 jobs are starting" in places.full(start=True)
    places.tidy(0.5, {7: 4711}, lambda keeper: True)
    assert not places.full(start=False), "one has arrived"


def test_the_start_is_the_cheapest_node() -> None:
    order = order_for_start([node(1, 1), node(2, 0), node(3, 0, speed=2), node(4, 0, speed=9, used=4000 * MB)], 1, 50 * MB)
    assert [n.id for n in order] == [3, 2, 1, 4]


def test_prices_for_why() -> None:
    rows = prices([node(1, 2), node(2, 0)], 1, MB, here=1)
    assert [(r["node"], r["here"]) for r in rows] == [("n1", True), ("n2", False)]
    assert rows[0]["rate"] == 0.5 and rows[1]["rate"] == 1.0


# -- admission ------------------------------------------------------------------------------------------------------------------------

ME = NodeInfo(2, "n2", "10.0.0.2", mem_total=1000 * MB, mem_free=800 * MB)
HOME = NodeInfo(1, "n1", "10.0.0.1")


def facts(**changes: object) -> ProcessFacts:
    base = dict(
        pid=9, start=1, boot="b", comm="awk", uid=1000, gid=1000, ppid=1, pgid=9, sid=9, tty_nr=0, tpgid=-1, tree=[9], tids=[9],
        uids=[1000], gids=[1000], rss=10 * MB,
    )  # fmt: skip
    return ProcessFacts(**(base | changes))  # type: ignore[arg-type]  # a table of fields


def test_an_ordinary_process_is_taken() -> None:
    assert admit(facts(), HOME, ME, Config(), hosted=0, reserved_mem=0) == []


def test_every_reason_is_listed() -> None:
    me = NodeInfo(2, "n2", "10.0.0.2", mem_total=100, mem_free=50, accepting=False, why_not="blocked by its administrator")
    out = admit(facts(uids=[0, 1000], gids=[5]), HOME, me, Config(max_guests=1), hosted=1, reserved_mem=0)
    words = " | ".join(out)
    assert len(out) == 5
    for told in ("does not accept", "user 0", "allow_root_guests", "group 5", "max_guests", "memory"):
        assert told in words


def test_root_only_where_allowed() -> None:
    root = facts(uid=0, uids=[0], gids=[0, 4])
    assert admit(root, HOME, ME, Config(), hosted=0, reserved_mem=0)
    assert admit(root, HOME, ME, Config(allow_root_guests=True), hosted=0, reserved_mem=0) == []


def test_privileges_are_refused_before_anything_is_sent() -> None:
    p = facts(privileges=[f"make ({i}): nice value -5" for i in range(9)])
    (said,) = admit(p, HOME, ME, Config(), hosted=0, reserved_mem=0)
    assert "make (0): nice value -5" in said and "and 6 more" in said
    assert admit(p, HOME, ME, Config(allow_root_guests=True), hosted=0, reserved_mem=0) == []
    assert len(admit(dataclasses.replace(p, uid=0), HOME, ME, Config(), hosted=0, reserved_mem=0)) == 1, "root has them all"


def test_home_always_takes_its_own_back() -> None:
    me = NodeInfo(1, "n1", "10.0.0.1", accepting=False)
    assert admit(facts(uids=[0]), HOME, me, Config(max_guests=0), hosted=9, reserved_mem=0) == []


def test_memory_promised_to_others_is_gone() -> None:
    for reserved, taken in itertools.product((0, 790 * MB), (True,)):
        assert (admit(facts(rss=100 * MB), HOME, ME, Config(), hosted=0, reserved_mem=reserved) == []) is (taken and not reserved)
