"""A refutation is no changed record: nobody fetches it, and what one has of the node is still good."""

from __future__ import annotations

import dataclasses

import pytest
from omtools.poolsim.world import World

from mig.pool.incarnations import STEP, changed, is_record_of
from mig.pool.message import ALIVE, DEAD, NEWS, SUSPECT, Message, Rumor
from mig.pool.outcome import Outcome
from mig.pool.pool import Pool
from mig.pool.timing import Timing


def pool(count: int = 9) -> tuple[World, Pool, float]:
    w = World(count, Timing(), 1, exact=True)
    w.acquaint()
    w.run(3)
    return w, w.nodes[1], w.now + w.offsets[1]


def wants(p: Pool, now: float, r: Rumor) -> list[int]:
    """What a node asks for when it hears a rumour from node 2."""
    out = p.datagram(now, p.table.address(2), Message(NEWS, 2, rumors=[r]))
    return [i for s in out.sends for i in s.message.wants]


def test_a_refutation_is_not_fetched_and_a_changed_record_is() -> None:
    _, p, now = pool()
    before = p.table.incarnations[5]
    assert wants(p, now, Rumor(5, before + 1, ALIVE, 5)) == []
    assert p.table.incarnations[5] == before + 1
    assert wants(p, now, Rumor(5, changed(before), ALIVE, 5)) == [5]


def test_the_refutation_of_one_whose_incarnations_are_counted_as_before_is_fetched() -> None:
    _, p, now = pool()
    record = p.table.records[5]
    assert record is not None and record.steps
    p.table.records[5] = dataclasses.replace(record, steps=False)
    assert wants(p, now, Rumor(5, p.table.incarnations[5] + 1, ALIVE, 5)) == [5]


@pytest.mark.parametrize("state", [SUSPECT, DEAD])
def test_who_refutes_lives_again_at_once(state: int) -> None:
    _, p, now = pool()
    m, before = p.members, p.table.incarnations[5]
    m.suspect(now, 5, Outcome())
    if state == DEAD:
        m.expired(now + 100, Outcome())
    assert p.table.states[5] == state
    out = Outcome()
    assert m.rumor(now + 100, Rumor(5, before + 1, ALIVE, 5), out)
    assert p.table.states[5] == ALIVE and [c.state for c in out.changes] == ["alive"]
    assert m.rumors.take(9, 9)[0] == Rumor(5, before + 1, ALIVE, 5), "others are told"


def test_a_dead_one_with_another_record_lives_when_that_is_here() -> None:
    _, p, now = pool()
    m, before = p.members, p.table.incarnations[5]
    m.suspect(now, 5, Outcome())
    m.expired(now + 100, Outcome())
    new = changed(before)
    assert wants(p, now + 100, Rumor(5, new, ALIVE, 5)) == [5] and p.table.states[5] == DEAD
    record = p.table.records[5]
    assert record is not None
    m.record(now + 101, dataclasses.replace(record, incarnation=new, cpus=3.0), Outcome())
    assert p.table.states[5] == ALIVE and wants(p, now + 101, Rumor(5, new, ALIVE, 5)) == []


def test_a_record_is_given_as_of_the_newest_incarnation() -> None:
    """An older version waits for one that is as new as the rumour."""
    _, p, now = pool()
    m, before = p.members, p.table.incarnations[5]
    m.rumor(now, Rumor(5, before + 3, ALIVE, 5), Outcome())
    given = m.known_record(5)
    assert given is not None and given.incarnation == before + 3 and given.steps
    m.rumor(now, Rumor(5, changed(before), ALIVE, 5), Outcome())
    assert m.known_record(5) is None


def test_a_node_counts_its_own_so_that_others_know_what_changed() -> None:
    _, p, now = pool()
    m, mine = p.members, p.members.own_record()
    m.rumor(now, Rumor(1, m.incarnation, SUSPECT, 5), Outcome())
    assert is_record_of(mine, m.incarnation) and m.incarnation == mine.incarnation + 1
    m.look_at(dataclasses.replace(p.me, why_not="blocked"))
    assert not is_record_of(mine, m.incarnation) and m.incarnation % STEP == 0
    assert is_record_of(m.own_record(), m.incarnation)
    claimed = m.incarnation + 5  # of an earlier life whose clock was ahead: its record was another
    m.rumor(now, Rumor(1, claimed, ALIVE, 1), Outcome())
    assert m.incarnation == changed(claimed)
