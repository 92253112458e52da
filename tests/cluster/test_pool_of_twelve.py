"""A pool of twelve real daemons: found, lost and found again in time, with guests on both sides of a cut; two keys on one network."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from omtools.client import Client
from omtools.moslab import init, ready

from .conftest import LabUnderTest
from .helpers import servant, where

pytestmark = pytest.mark.long

FOUND_S, DEATH_S = 3.0, 8.0
"""Everybody knows everybody so long after the last one has started, and of a dead node so long after its end."""
STARTED = re.compile(r"^(\S+ \S+) INFO node (n\d+), id ", re.M)


@pytest.fixture(scope="module")
def twelve() -> Iterator[LabUnderTest]:
    made = LabUnderTest("t12", "--set", "auto=none", nodes=12)
    yield made
    made.down()


def names(lab: LabUnderTest) -> list[str]:
    return [n.name for n in lab.lab.nodes]


def seen(lab: LabUnderTest, viewer: str) -> list[dict[str, Any]]:
    """What its omdiscd has seen of other nodes, the oldest first."""
    with Client(ready.tree(lab.lab, lab.lab.node(viewer)) / ready.CONTROL) as client:
        return [e for e in client.call("events")["events"] if e["kind"] == "node"]


def last(lab: LabUnderTest, viewer: str, node: str, state: str, since: float) -> float:
    """When ``viewer`` learnt, after ``since``, that ``node`` is ``state``; 0 while it has not."""
    return max((e["t"] for e in seen(lab, viewer) if (e["to"], e["outcome"]) == (node, state) and e["t"] > since), default=0.0)


def alive(lab: LabUnderTest, viewer: str) -> set[str]:
    return ready.seen_alive(lab.lab, lab.lab.node(viewer))


def test_all_see_each_other_soon_after_the_last_start(twelve: LabUnderTest, record: Callable[..., None]) -> None:
    started = []
    for name in names(twelve):
        log = (ready.tree(twelve.lab, twelve.lab.node(name)) / init.STATE[1:] / "omdiscd.log").read_text()
        (told,) = STARTED.findall(log)
        started.append(datetime.strptime(told[0], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp())
    whole = max(last(twelve, viewer, node, "alive", 0) for viewer in names(twelve) for node in names(twelve) if node != viewer)
    assert all(last(twelve, v, n, "alive", 0) for v in names(twelve) for n in names(twelve) if n != v)
    record(f"all 12 see each other {whole - max(started):.2f} s after the last start")
    assert whole - max(started) <= FOUND_S


def test_a_death_is_known_to_all(twelve: LabUnderTest, record: Callable[..., None]) -> None:
    for victim in ("n12", "n5", "n1"):
        others = [n for n in names(twelve) if n != victim]
        since = time.time()
        twelve.kill(victim)
        twelve.wait_for(lambda: all(last(twelve, v, victim, "dead", since) for v in others), timeout=30, what=f"{victim} is dead for all")  # noqa: B023
        took = max(last(twelve, v, victim, "dead", since) for v in others) - since
        twelve.start(victim)
        ready.wait(twelve.lab, twelve.lab.nodes)
        record(f"the death of {victim} known to all after {took:.2f} s")
        assert took <= DEATH_S


def test_a_pool_that_was_cut_in_two_heals_and_guests_on_both_sides_go_on(twelve: LabUnderTest, record: Callable[..., None]) -> None:
    """Six of twelve lose the others for a minute.  What has its home on the other side waits for its files and terminal, what needs
    nothing from there computes on; nobody is ended, and afterwards everything is as before."""
    gone = names(twelve)[6:]
    with servant(twelve) as abroad, servant(twelve) as near:
        abroad.move("n7")
        near.move("n2")
        for s in (abroad, near):
            s.do("beats = [0]")
            s.do("def beat():\n while True:\n  beats[0] += 1; time.sleep(.01)")
            s.do("threading.Thread(target=beat, daemon=True).start()")
        before = abroad.ask("beats[0]")
        for name in gone:
            twelve.cut(name)
        cut = time.time()
        half = set(names(twelve)[:6])
        twelve.wait_for(lambda: alive(twelve, "n1") == alive(twelve, "n2") == half, timeout=30, what="n1 and n2 see their half only")
        while time.time() < cut + 60:
            assert alive(twelve, "n2") <= half and near.ask("beats[0]") > 0
            time.sleep(1)
        for name in gone:
            twelve.heal(name)
        healed = time.time()
        ready.wait(twelve.lab, twelve.lab.nodes)
        record(f"a pool of 12 is whole {time.time() - healed:.2f} s after a cut of 60 s")
        twelve.wait_for(lambda: where(twelve, abroad.pid) == "n7", what="n7 tells of its guest again")
        assert abroad.ask("beats[0]") > before + 3000, "it computed while it was cut off"
        assert where(twelve, near.pid) == "n2"
        assert abroad.ask("len(os.listdir('/etc'))", timeout=30) > 0
        record(f"a guest's files answer {time.time() - healed:.1f} s after the cut")
        abroad.move("n2")
        abroad.move("n7")
        for s, to in ((abroad, "n2"), (near, "n7"), (abroad, "home"), (near, "home")):
            s.move(to)
        assert abroad.end() == 0 and near.end() == 0


def test_two_keys_on_one_network_are_two_pools(twelve: LabUnderTest, record: Callable[..., None]) -> None:
    """The odd nodes take another key at once: two pools share a bridge, a multicast group and each other's addresses as seeds."""
    odd, even = names(twelve)[::2], names(twelve)[1::2]
    old = twelve.path("n2", "/etc/mig/cluster.key").read_bytes()
    try:
        _rekey(twelve, odd, bytes(range(32)))
        since = time.time()
        for half in (odd, even):
            for name in half:
                twelve.wait_for(lambda: alive(twelve, name) == set(half), timeout=40, what=f"{name} sees its own pool only")  # noqa: B023
        mixed = [(v, e["to"]) for half in (odd, even) for v in half for e in seen(twelve, v)
                 if e["t"] > since and e["outcome"] == "alive" and e["to"] not in half]  # fmt: skip
        assert not mixed
        time.sleep(15)
        assert all(alive(twelve, name) == set(half) for half in (odd, even) for name in half)
        for name in (odd[0], even[0]):
            log = twelve.path(name, f"{init.STATE}/omdiscd.log").read_text()
            assert "not sealed with our key" in log, "the strangers are named"
        refused = twelve.run("n1", ["migrate", str(twelve.spawn("n1", ["sleep", "100"])), "n2"])
        assert refused.returncode != 0 and "n2" in refused.stderr
    finally:
        _rekey(twelve, odd, old)
    ready.wait(twelve.lab, twelve.lab.nodes)
    record("two keys on one bridge: no node of the other pool was seen in 15 s")


def _rekey(lab: LabUnderTest, nodes: list[str], key: bytes) -> None:
    for name in nodes:
        lab.path(name, "/etc/mig/cluster.key").write_bytes(key)
        lab.signal(name, lab.daemon_pid(name), 15)
    for name in nodes:
        lab.wait_for(lambda: not lab.daemon_pid(name), what="omdiscd ends")  # noqa: B023
    for name in nodes:
        lab.moslab("restart-daemon", name, "--no-wait", check=True)


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """A figure, told in the test's output."""

    def note(text: str) -> None:
        record_property("figure", text)
        print(text)

    return note
