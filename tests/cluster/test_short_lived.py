"""Shells that start short-lived children without a break: whenever they are caught, they move."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from .helpers import migrate, wait_text

SCRIPTS = {
    "children": "while :; do /bin/true; n=$((n+1)); echo $n > /var/tmp/g/n; done",
    "pipes": "while :; do n=$(echo $n | { read -r x; echo $((x+1)); }); echo $n > /var/tmp/g/n; done",
}


def count(lab: Any, more: int) -> int:
    """The number that it has come to, which must be greater."""
    text = wait_text(lab, "/var/tmp/g/n", when=lambda t: t.strip().isdigit() and int(t) > more, timeout=30)
    return int(text)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_shell_that_starts_children_all_the_time(lab: Any, script: str, uid: int) -> None:
    lab.run("n1", "rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g", check=True)
    pid = lab.spawn("n1", ["sh", "-c", f"n=0; {SCRIPTS[script]}"], uid)
    reached = count(lab, 3)
    for to in itertools.islice(itertools.cycle(["n2", "n3", "home"]), 20):
        migrate(lab, pid, to, timeout=60)
        reached = count(lab, reached + 2)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", SCRIPTS)
def test_first_moves_of_shells_that_start_children_all_the_time(lab: Any, script: str) -> None:
    """The first move is the one that looks around most."""
    for _ in range(20):
        lab.run("n1", "rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g", check=True)
        pid = lab.spawn("n1", ["sh", "-c", f"n=0; {SCRIPTS[script]}"])
        reached = count(lab, 3)
        migrate(lab, pid, "n2", timeout=60)
        count(lab, reached + 2)
        lab.signal("n1", pid, 9)
        lab.wait_for(lambda p=pid: not lab.alive("n1", p), what="its end")
