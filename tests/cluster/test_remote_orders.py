"""Root of one node blocks, empties and opens another; the other one's administrator has the last word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.helpers import migrate, screen_of, where


def status(lab: Any, node: str, of: str) -> dict[str, Any]:
    (row,) = json.loads(lab.run(node, ["mosctl", "status", of, "--json"], check=True).stdout)
    return dict(row)


@pytest.fixture
def pool(lab: Any) -> Any:
    yield lab
    lab.run("n2", ["mosctl", "noblock"], check=True)


def guest(lab: Any, to: str = "n2") -> int:
    pid = int(lab.spawn("n1", ["python3", "-S", "-c", "while True: pass"]))
    migrate(lab, pid, to)
    return pid


def test_a_node_is_emptied_from_another(pool: Any) -> None:
    pid = guest(pool)
    r = pool.run("n3", ["mosctl", "expel", "n2", "--fast", "--json"], check=True)
    told = json.loads(r.stdout)
    assert told["moved"] == 1 and told["guests"][0]["pid"] == pid and told["guests"][0]["to"] == "n1"
    assert where(pool, pid) == "n1"
    pool.wait_for(lambda: not status(pool, "n1", "n2")["accepting"], what="the pool knows that n2 is blocked")
    assert status(pool, "n1", "n2")["why_not"].startswith("blocked by root of n3")
    r = pool.run("n1", ["migrate", str(pid), "n2"])
    assert r.returncode == 3 and "blocked by root of n3" in r.stderr
    pool.restart_daemon("n2")
    assert status(pool, "n2", "n2")["why_not"].startswith("blocked by root of n3"), "it stays so over a restart"
    pool.run("n1", ["mosctl", "noblock", "n2"], check=True)
    assert status(pool, "n2", "n2")["accepting"]


def test_what_was_ordered_there_is_not_undone_from_here(pool: Any) -> None:
    pool.run("n2", ["mosctl", "block"], check=True)
    pool.run("n1", ["mosctl", "block", "n2"], check=True)
    r = pool.run("n1", ["mosctl", "noblock", "n2"])
    assert r.returncode == 6 and "was blocked on n2 itself" in r.stderr
    assert status(pool, "n2", "n2")["why_not"] == "blocked by its administrator"
    pool.run("n2", ["mosctl", "noblock"], check=True)
    pool.run("n1", ["mosctl", "block", "n2"], check=True)
    pool.run("n2", ["mosctl", "noblock"], check=True)
    assert status(pool, "n2", "n2")["accepting"]


def test_who_may_not_order(pool: Any) -> None:
    r = pool.run("n1", ["mosctl", "expel", "n2"], 1001)
    assert r.returncode == 6 and "only root may" in r.stderr
    file = pool.path("n2", "/etc/mig/omdiscd.toml")
    before = file.read_text()
    try:
        for setting, said in (("remote_orders = false", "no orders of other nodes"), ('allow_from = ["n3"]', "no orders of n1")):
            file.write_text(f"{before}{setting}\n")
            pool.run("n2", ["mosctl", "reload"], check=True)
            for verb in ("block", "noblock", "expel"):
                r = pool.run("n1", ["mosctl", verb, "n2"])
                assert r.returncode == 6 and said in r.stderr, r.stderr
        assert status(pool, "n2", "n2")["accepting"]
        pool.run("n3", ["mosctl", "block", "n2"], check=True)
    finally:
        file.write_text(before)
        pool.run("n2", ["mosctl", "reload"], check=True)


def test_a_node_that_is_gone_is_said_to_be(pool: Any) -> None:
    pool.cut("n2")
    try:
        r = pool.run("n1", ["mosctl", "expel", "n2"])
    finally:
        pool.heal("n2")
    assert r.returncode == 4 and "n2 cannot be reached" in r.stderr and "nothing was changed" in r.stderr


def test_it_is_done_from_mosmon(pool: Any) -> None:
    pid = guest(pool)
    session = pool.pty("n1", ["mosmon", "--view", "nodes"], env={"TERM": "screen"}, dimensions=(30, 120))
    until = screen_of(session, 120, 30)

    until("3 of 3 nodes up")
    session.send("\x1bOB")  # n2 is below n1
    session.send("X")
    until("expel all guests from n2")
    session.send("y")
    until("no guest is left on n2")
    assert where(pool, pid) != "n2"
    until("no: blocked by root of n1")
    session.send("B")
    until("n2 is not blocked any more")
    session.send("q")
    session.expect("$")
