"""Everybody who has a part in memory that still arrives is killed, alone and together: never a wrong byte.

The guest goes on, or is ended with an event that says why.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster.helpers import file_text
from tests.cluster.test_memory import Block, arrived, events, move

from .conftest import Faults

HELPERS = {
    "pager": ("n2", "pgrep -of mig[.]memory[.]pager_main"),
    "guardian": ("n2", "pgrep -x mig-guardian | head -n 1"),
    "other guardian": ("n2", "pgrep -x mig-guardian | tail -n 1"),
    "keeper": ("n2", "pgrep -of mig[.]cell[.]keeper"),
    "source": ("n1", "pgrep -of mig[.]memory[.]source_main"),
    "agent": ("n1", "pgrep -of mig[.]agent[.]main"),
}
FATAL = {"keeper", "agent"}
"""The guest's pipes and files are theirs."""
ALL_HOLDERS = {"pager", "guardian", "other guardian"}
"""With them what they had learnt of the guest is gone; the keeper holds its userfaultfds until it has ended."""
SURVIVED = [("pager",), ("guardian",), ("source",), ("pager", "guardian"), ("pager", "source"), ("guardian", "source")]
NOT_SURVIVED = [("keeper",), ("agent",), ("pager", "guardian", "keeper"), ("keeper", "pager"), ("keeper", "guardian"), ("agent", "keeper")]
NOT_SURVIVED.append(("pager", "guardian", "other guardian"))


def alone(lab: Any) -> None:
    """Wait until no helper of an earlier guest is left, which would be found for one of this."""
    for node in ("n1", "n2"):
        left = "; ".join(how for at, how in HELPERS.values() if at == node)
        lab.wait_for(lambda node=node, left=left: not lab.run(node, left).stdout, what=f"the end of earlier helpers on {node}")


def kill(lab: Any, who: tuple[str, ...]) -> set[str]:
    """SIGKILL to them, on each node in one instant; those that were there."""
    there = set()
    for node in ("n1", "n2"):
        asked = [w for w in who if HELPERS[w][0] == node]
        if asked:
            found = " ".join(f'"$({HELPERS[w][1]}):{w}"' for w in asked)
            script = f'set -- {found}; p=; for x; do case $x in :*) ;; *) p="$p ${{x%%:*}}"; echo "${{x#*:}}";; esac; done; kill -9 $p'
            there |= set(lab.run(node, script).stdout.splitlines())
    return there


def outcome(lab: Any, block: Block) -> str:
    """How it ends: ``goes on`` or ``lost``, in both cases without a wrong byte."""
    rounds = len(file_text(lab, block.file).splitlines())

    def settled() -> str:
        if not lab.alive("n1", block.pid):
            return "lost"
        return "goes on" if len(file_text(lab, block.file).splitlines()) > rounds + 3 else ""

    how = str(lab.wait_for(settled, 60, "the guest goes on or is lost"))
    if how == "lost":
        lab.wait_for(lambda: events(lab, block.pid, "lost"), 20, "an event that says why")
        assert all(e["reason"] for e in events(lab, block.pid, "lost"))
    text = file_text(lab, block.file)
    assert "BAD" not in text, text
    return how


@pytest.mark.parametrize("who", [*SURVIVED, *NOT_SURVIVED], ids="+".join)
def test_who_dies_in_the_middle_of_postcopy(lab: Any, faults: Faults, who: tuple[str, ...]) -> None:
    """With half of the memory there, and the pager standing still: so nothing more can arrive before the others are dead."""
    alone(lab)
    block = Block(lab, f"middle-{'-'.join(who)}".replace(" ", "-"))
    faults.set("n2", "mid_postcopy", "hang")
    move(lab, block.pid, "n2", "post-copy")
    faults.wait("n2", "mid_postcopy")
    assert kill(lab, who) == set(who)
    faults.clear("n2", "mid_postcopy")
    lab.run("n2", "rm -f /run/mig/faults/*.hit")
    assert outcome(lab, block) == ("goes on" if who in SURVIVED else "lost")
    lab.signal("n1", block.pid, 9)
    lab.wait_for(lambda: not lab.alive("n1", block.pid), what="its end")


@pytest.mark.parametrize("mode", ["pre-copy", "pre-copy-only"])
@pytest.mark.parametrize("who", [("pager",), ("pager", "source"), ("pager", "guardian"), ("guardian", "other guardian")], ids="+".join)
def test_what_has_come_needs_nobody(lab: Any, faults: Faults, who: tuple[str, ...], mode: str) -> None:
    """All is on the node, most of it in the pager's store: another pager finds it there, and asks no source, which is told so."""
    alone(lab)
    block = Block(lab, f"whole-{mode}-{'-'.join(who)}".replace(" ", "-"))
    faults.set("n2", "before_placed", "hang")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(move, lab, block.pid, "n2", mode)
        faults.wait("n2", "before_placed")
        if mode == "pre-copy":
            assert job.result(60)["mode"] == mode
        assert kill(lab, who) == set(who)
        faults.clear("n2", "before_placed")
        lab.run("n2", "rm -f /run/mig/faults/*.hit")
        assert job.result(60)["mode"] == mode
    assert outcome(lab, block) == "goes on"
    assert "another has taken over" in lab.run("n2", "cat /run/mig/log/keeper-*").stdout or "pager" not in who
    arrived(lab, block.pid, 1)
    lab.wait_for(lambda: not lab.run("n2", "pgrep -f mig[.]memory; pgrep -x mig-guardian").stdout, what="all is in its place")
    move(lab, block.pid, "home", "post-copy")
    assert outcome(lab, block) == "goes on"
    lab.signal("n1", block.pid, 9)
    lab.wait_for(lambda: not lab.alive("n1", block.pid), what="its end")


def test_the_keeper_holds_what_the_pager_and_all_guardians_held(lab: Any, faults: Faults) -> None:
    """It cannot even react, and no thread reads a page that has not come."""
    alone(lab)
    block = Block(lab, "holders")
    faults.set("n2", "mid_postcopy", "hang")
    move(lab, block.pid, "n2", "post-copy")
    faults.wait("n2", "mid_postcopy")
    keeper = int(lab.run("n2", HELPERS["keeper"][1], check=True).stdout)
    lab.run("n2", f"kill -STOP {keeper}", check=True)
    assert kill(lab, ("pager", "guardian", "other guardian")) == ALL_HOLDERS
    time.sleep(1)  # for a thread that waits for a page: long enough to read it, if it could, and to write what it found
    lab.run("n2", f"kill -CONT {keeper}", check=True)
    faults.clear("n2", "mid_postcopy")
    assert outcome(lab, block) == "lost"
    assert any("every guardian" in e["reason"] for e in events(lab, block.pid, "lost"))


@pytest.mark.parametrize(("node", "action"), [("n1", "die"), ("n1", "fail"), ("n2", "die"), ("n2", "fail")])
def test_fault_in_the_middle_of_postcopy(lab: Any, faults: Faults, node: str, action: str) -> None:
    """The page source at home, or the pager on the host: another takes over."""
    block = Block(lab, f"point-{node}-{action}")
    faults.set(node, "mid_postcopy", action)
    move(lab, block.pid, "n2", "post-copy")
    faults.wait(node, "mid_postcopy")
    faults.clear(node, "mid_postcopy")
    assert outcome(lab, block) == "goes on"
    lab.wait_for(lambda: events(lab, block.pid, "memory"), 60, "all memory has arrived")
    lab.signal("n1", block.pid, 9)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_deaths_at_random_times(own_lab: Callable[..., Any], record_property: Callable[[str, object], None]) -> None:
    """One to three of them at once, over a link on which the memory takes more than a second."""
    lab = own_lab("--link", "1gbit", nodes=2)
    lab.let_move(False)
    times = int(os.environ.get("DEATHS", "200"))
    chance = random.Random(int(os.environ.get("SEED", times)))
    seen: Counter[str] = Counter()
    for n in range(times):
        block = Block(lab, f"random-{n}")
        move(lab, block.pid, "n2", "post-copy")
        who: tuple[str, ...] = tuple(chance.sample(list(HELPERS), chance.choice([1, 1, 2, 3, 3])))
        time.sleep(chance.random() * 1.2)
        dead = kill(lab, who)
        how = outcome(lab, block)
        if how == "lost":
            assert dead & FATAL or dead >= ALL_HOLDERS, (who, dead, events(lab, block.pid, "lost"))
        seen[f"{'+'.join(sorted(dead)) or 'nobody'}: {how}"] += 1
        lab.signal("n1", block.pid, 9)
        lab.wait_for(lambda b=block: not lab.alive("n1", b.pid), what="its end")
        lab.run("n1", f"rm -f {block.file}")
        if n % 10 == 9:
            print(n + 1, dict(itertools.islice(seen.most_common(), 40)), flush=True)
    record_property("deaths", f"{times}: {dict(seen)}")
