"""Membership and seals: datagrams and time go in, datagrams and changes come out; a pool of many nodes without a network."""

from __future__ import annotations

import random

import pytest
from nacl.secret import SecretBox
from omdiscd.gossip import GROUP, Changed, Membership, Outcome, Timing
from omdiscd.seal import MAX_DATAGRAM, Seal, SealError

from mig.model import NodeInfo

KEY = bytes(range(32))


def info(i: int, **kwargs: object) -> NodeInfo:
    return NodeInfo(i, f"n{i}", f"10.0.{i >> 8}.{i & 255}", port=7230, incarnation=1, boot=f"b{i}", **kwargs)  # type: ignore[arg-type]


class Pool:
    """Nodes that exchange datagrams at once; ``cut`` nodes neither send nor hear."""

    def __init__(self, count: int, *, multicast: bool = True, seeds: list[int] | None = None, timing: Timing | None = None) -> None:
        self.now = 100.0
        self.multicast = multicast
        self.cut: set[int] = set()
        self.changes: list[tuple[int, Changed]] = []
        self.sent = 0
        addresses = [(info(s).addr, 7230) for s in seeds or []]
        self.nodes = {
            i: Membership(info(i), addresses, timing or Timing(), random.Random(i), self.now) for i in range(1, count + 1)
        }  # fmt: skip
        self.seals = {i: Seal(KEY, i, 1) for i in self.nodes}

    def deliver(self, sender: int, outcome: Outcome) -> None:
        self.changes += [(sender, c) for c in outcome.changes]
        for s in outcome.sends:
            if sender in self.cut or (s.to == GROUP and not self.multicast):
                continue
            for i, m in self.nodes.items():
                if i != sender and i not in self.cut and (s.to == GROUP or s.to == (m.me.addr, m.me.port)):
                    self.sent += 1
                    body = self.seals[i].open(self.seals[sender].seal(s.body))
                    self.deliver(i, m.datagram(self.now, (self.nodes[sender].me.addr, 7230), body))

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            for i, m in self.nodes.items():
                self.deliver(i, m.tick(self.now, m.me))

    def states(self, viewer: int) -> dict[int, str]:
        return {n.id: n.state for n in self.nodes[viewer].nodes(self.now)}


def test_multicast_hellos_make_a_pool_in_one_interval() -> None:
    p = Pool(5)
    p.run(1)
    assert all(p.states(i) == dict.fromkeys(range(1, 6), "alive") for i in p.nodes)


def test_one_seed_is_enough_without_multicast() -> None:
    p = Pool(8, multicast=False, seeds=[3])
    p.run(3)
    assert all(len(p.states(i)) == 8 for i in p.nodes)


def test_loads_travel() -> None:
    p = Pool(3)
    p.run(1)
    p.nodes[2].me.load = 1.25
    p.nodes[2].me.guests = 7
    p.run(2)
    seen = next(n for n in p.nodes[1].nodes(p.now) if n.id == 2)
    assert (seen.load, seen.guests) == (1.25, 7)


def test_silence_makes_suspect_then_dead_and_a_word_makes_alive() -> None:
    p = Pool(3)
    p.run(3)
    p.cut.add(2)
    p.run(4)
    assert p.states(1)[2] == "alive"
    p.run(2)
    assert p.states(1)[2] == "suspect"
    p.run(3)
    assert p.states(1)[2] == "dead" and p.states(1)[3] == "alive"
    assert p.states(2)[1] == "dead", "the one that was cut off sees the others dead"
    p.cut.clear()
    p.run(6)
    assert p.states(1)[2] == "alive" and p.states(2)[1] == "alive"
    assert [c.node.state for who, c in p.changes if who == 1 and c.node.id == 2 and c.before == "dead"] == ["alive"]


def test_a_healed_network_joins_without_multicast() -> None:
    p = Pool(2, multicast=False, seeds=[1])
    p.run(3)
    p.cut.add(2)
    p.run(20)
    p.cut.clear()
    p.run(6)
    assert p.states(1)[2] == "alive" and p.states(2)[1] == "alive"


def test_our_own_sleep_kills_nobody() -> None:
    p = Pool(2)
    p.run(3)
    p.now += 60
    out = p.nodes[1].tick(p.now, p.nodes[1].me)
    assert out.changes == [] and p.states(1)[2] == "alive"


def test_leaving_is_told_at_once() -> None:
    p = Pool(3)
    p.run(2)
    p.now += 0.1
    me = info(2, state="left")
    p.deliver(2, p.nodes[2].urgent(p.now, me))
    assert p.states(1)[2] == "left" and p.states(3)[2] == "left"


def test_a_new_boot_is_noticed_even_without_a_pause() -> None:
    p = Pool(2)
    p.run(2)
    me = info(2)
    me.boot, me.incarnation = "other", 2
    p.deliver(2, p.nodes[2].urgent(p.now, me))
    (change,) = [c for who, c in p.changes if who == 1 and c.rebooted]
    assert change.node.boot == "other"


def test_older_news_never_replace_newer() -> None:
    a = Membership(info(1), [], Timing(), random.Random(1), 0.0)
    b = Membership(info(2, load=1.0), [], Timing(), random.Random(2), 0.0)
    first = b.urgent(0.0, info(2, load=1.0))
    assert first.sends == []
    old = {"t": "vector", "f": 2, "n": b._vector(0.0)}
    b.me = info(2, load=2.0)
    new = {"t": "vector", "f": 2, "n": b._vector(0.0)}
    a.datagram(10.0, ("", 0), new)
    a.datagram(10.0, ("", 0), old)
    assert a.table[2].info.load == 2.0
    a.datagram(11.0, ("", 0), old)
    assert a.table[2].info.load == 1.0, "younger by our clock"


def test_a_clash_of_ids_is_noticed() -> None:
    a = Membership(info(1), [], Timing(), random.Random(1), 0.0)
    twin = Membership(NodeInfo(1, "twin", "10.9.9.9", port=7230, incarnation=5), [], Timing(), random.Random(1), 0.0)
    a.datagram(1.0, ("", 0), {"t": "vector", "f": 1, "n": twin._vector(0.0)})
    assert a.clash == "10.9.9.9" and a.table == {}


def test_a_large_pool_fits_into_datagrams_and_stays_fresh() -> None:
    p = Pool(24)
    p.run(8)
    ages = [n.age_s for m in p.nodes.values() for n in m.nodes(p.now)]
    assert max(ages) < 5 and all(set(p.states(i).values()) == {"alive"} for i in p.nodes)


@pytest.mark.parametrize(
    "entries",
    [None, [[]], [["x"] * 17], [5], [[2, "n2", "10.0.0.2", 7230, "alive", 1, "b", "fast", 1.0, 0.0, 0, 0, 0, True, "", "0", 5]]],
)
def test_nonsense_is_refused_and_changes_nothing(entries: object) -> None:
    m = Membership(info(1), [], Timing(), random.Random(1), 0.0)
    with pytest.raises(ValueError):
        m.datagram(1.0, ("10.0.0.9", 1), {"t": "vector", "f": 2, "n": entries})
    assert m.table == {}


# -- seals ----------------------------------------------------------------------------------------------------------------------------


def test_a_seal_opens_once() -> None:
    a, b = Seal(KEY, 1, 1), Seal(KEY, 2, 1)
    d = a.seal({"n": []})
    assert b.open(d)["f"] == 1
    with pytest.raises(SealError, match="before"):
        b.open(d)
    b.open(a.seal({"n": []}))


def test_a_restarted_sender_is_believed_and_its_former_life_is_not() -> None:
    old, new, b = Seal(KEY, 1, 1), Seal(KEY, 1, 2), Seal(KEY, 2, 1)
    stale = old.seal({})
    b.open(new.seal({}))
    with pytest.raises(SealError):
        b.open(stale)


@pytest.mark.parametrize("damage", ["key", "bit", "short", "long", "bare"])
def test_what_is_not_ours_is_refused(damage: str) -> None:
    a, b = Seal(KEY, 1, 1), Seal(KEY, 2, 1)
    d = bytearray(a.seal({"n": []}))
    if damage == "key":
        d = bytearray(Seal(bytes(32), 1, 1).seal({}))
    elif damage == "bit":
        d[-1] ^= 1
    elif damage == "short":
        d = d[:20]
    elif damage == "long":
        d = d + bytes(MAX_DATAGRAM)
    else:
        d = bytearray(b"m2" + SecretBox(KEY).encrypt(b"\xc1"))
    with pytest.raises(SealError):
        b.open(bytes(d))


def test_datagrams_have_a_limit() -> None:
    with pytest.raises(ValueError):
        Seal(KEY, 1, 1).seal({"x": "y" * MAX_DATAGRAM})
