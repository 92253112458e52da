"""Memory that follows the guest: every mode, and everything that can die or be cut while pages are on their way."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Faults
from tests.guests import build

from .helpers import GUESTS, file_text, servant, wait_text, where

DIRECTORY = "/opt/memory"
SIZE = 192


@pytest.fixture
def programs(lab: Any) -> str:
    """Where the guest programs are, on n1."""
    directory: Path = lab.path("n1", DIRECTORY)
    if not directory.exists():
        directory.mkdir(mode=0o755)
        build.build(directory)
    return DIRECTORY


@pytest.fixture
def faults(lab: Any) -> Faults:
    """Switches of fault points; they are off after the test."""
    return Faults(lab)


class Block:
    """A guest with a block of random memory that it verifies all the time."""

    def __init__(self, lab: Any, name: str) -> None:
        self.lab, self.file = lab, f"/var/tmp/{name}"
        lab.run("n1", f"rm -f {self.file}")
        self.pid = lab.spawn("n1", ["python3", "-S", str(GUESTS / "block.py"), str(SIZE), self.file])
        wait_text(lab, self.file)

    def verified(self, timeout: float = 60) -> None:
        """Two more whole rounds without a fault."""
        lines = file_text(self.lab, self.file).splitlines()
        text = wait_text(self.lab, self.file, when=lambda t: len(t.splitlines()) > len(lines) + 2, timeout=timeout)
        assert "BAD" not in text, text


@pytest.fixture
def block(lab: Any, request: pytest.FixtureRequest) -> Iterator[Block]:
    """One."""
    b = Block(lab, f"block-{request.node.name}")
    yield b
    lab.signal("n1", b.pid, signal.SIGKILL)


def move(lab: Any, pid: int, to: str, mode: str) -> dict[str, Any]:
    """migrate --mode; the tool's JSON."""
    r = lab.run("n1", ["migrate", "--json", "--mode", mode, str(pid), to], timeout=90)
    assert r.returncode == 0, r.stdout + r.stderr
    result: dict[str, Any] = json.loads(r.stdout)
    return result


def row(lab: Any, pid: int) -> dict[str, Any]:
    """Its row of mosps at home."""
    rows = json.loads(lab.run("n1", ["mosps", "-a", "--json"], check=True).stdout)
    found: dict[str, Any] = next(r for r in rows if r["pid"] == pid)
    return found


def events(lab: Any, pid: int, kind: str) -> list[dict[str, Any]]:
    """Events of home about it."""
    lines = lab.run("n1", ["mosctl", "events", "--json"], check=True).stdout.splitlines()
    return [e for e in map(json.loads, lines) if e.get("kind") == kind and e.get("pid") == pid]


def arrived(lab: Any, pid: int, times: int) -> None:
    """All of its memory has come, for the so many-th time, and nobody holds it any more."""
    lab.wait_for(lambda: len(events(lab, pid, "memory")) >= times, 60, "the event that all memory has arrived")
    lab.wait_for(lambda: row(lab, pid)["holder"] == 0 and row(lab, pid)["arriving"] == 0, 20, "the holder is gone")


def test_every_mode_brings_a_guest_that_changes_its_address_space_through_whole(lab: Any, programs: str) -> None:
    """Unmap, discard, mremap, fork and exec while pages arrive: home -> n2 -> n3 -> home, each mode at least once."""
    pid = lab.spawn("n1", [f"{programs}/churn", "-q", "-m", "64", "-t", "3"])
    lab.wait_for(lambda: "ready" in lab.output("n1", pid), 20, "the guest is ready")
    seen = [move(lab, pid, to, mode)["mode"] for to, mode in (("n2", "post-copy"), ("n3", "post-copy"), ("home", "full"), ("n2", "auto"))]
    assert seen[:3] == ["post-copy", "post-copy", "full"]
    assert seen[3] in ("pre-copy", "post-copy"), "auto leaves memory out of the pause where it can"
    arrived(lab, pid, 3)
    time.sleep(0.5)
    assert lab.alive("n1", pid), "its deputy"
    assert "ERROR" not in lab.output("n1", pid)
    lab.signal("n1", pid, signal.SIGKILL)


def kill(lab: Any, node: str, *pattern: str) -> int:
    """SIGKILL to one helper; its pid, 0 when there is none (any more)."""
    r = lab.run(node, f"p=$(pgrep -o -f '{' '.join(pattern)}') && kill -9 $p && echo $p")
    return int(r.stdout or 0)


def test_page_source_pager_and_guardian_die_and_no_byte_is_wrong(lab: Any, block: Block, faults: Faults) -> None:
    """Each of them with -9, while pages are on their way: half has come, and the pager stands still."""
    faults.set("n2", "mid_postcopy", "hang")
    move(lab, block.pid, "n2", "post-copy")
    faults.wait("n2", "mid_postcopy")
    assert kill(lab, "n1", "mig.memory.source_main")
    time.sleep(0.2)
    assert kill(lab, "n2", "mig.memory.pager_main"), "memory was still arriving"
    faults.clear("n2", "mid_postcopy")
    block.verified()
    arrived(lab, block.pid, 1)
    assert where(lab, block.pid) == "n2"
    log = lab.run("n2", "cat /run/mig/log/keeper-*").stdout
    assert "another has taken over" in log


@pytest.mark.long
def test_a_cut_link_makes_the_guest_wait_and_loses_nothing(lab: Any, block: Block, faults: Faults) -> None:
    """Cut in the middle of post-copy for longer than a connection's patience; mosps tells for whom it waits."""
    move(lab, block.pid, "n2", "pre-copy")
    arrived(lab, block.pid, 1)
    faults.set("n2", "mid_postcopy", "hang")  # the page source on n2
    move(lab, block.pid, "n3", "post-copy")
    faults.wait("n2", "mid_postcopy")
    lab.cut("n2")
    faults.clear("n2", "mid_postcopy")
    cut = time.monotonic()
    before = file_text(lab, block.file)
    lab.wait_for(lambda: row(lab, block.pid)["waiting_s"] > 5, 20, "home knows how long it has been waiting")
    assert row(lab, block.pid)["waiting_for"] == "n2"
    assert "waiting for memory from n2" in lab.run("n1", "mosps -a").stdout
    while time.monotonic() < cut + 20:
        time.sleep(0.5)
    assert row(lab, block.pid)["waiting_s"] > 12
    assert "BAD" not in file_text(lab, block.file)
    lab.heal("n2")
    block.verified(90)
    assert len(file_text(lab, block.file)) > len(before)
    arrived(lab, block.pid, 2)
    assert row(lab, block.pid)["waiting_for"] == ""


def test_an_aborted_move_costs_nothing_whatever_had_been_hidden(lab: Any, block: Block) -> None:
    """A failure at the last moment before the commit, and the destination's death at its barrier; then it moves."""
    for node, point, action in (("n1", "before_commit", "fail"), ("n2", "at_barrier", "die")):
        lab.run(node, f"mkdir -p /run/mig/faults; echo {action} > /run/mig/faults/{point}", check=True)
        r = lab.run("n1", ["migrate", "--mode", "post-copy", str(block.pid), "n2"], timeout=90)
        assert r.returncode == 4, r.stdout + r.stderr
        lab.run(node, "rm /run/mig/faults/*", check=True)
        block.verified()
        assert lab.run("n2", "pgrep -f 'mig[.]memory'").stdout == "", "neither pager nor guardian is left"
    assert move(lab, block.pid, "n2", "post-copy")["mode"] == "post-copy"
    block.verified()
    arrived(lab, block.pid, 1)


def test_a_guest_of_a_node_that_is_emptied_needs_it_no_more(own_lab: Any) -> None:
    """Pre-copy to the end: the node is cut off in the moment in which its guest has left it."""
    lab = own_lab()
    lab.let_move(False)
    block = Block(lab, "emptied")
    move(lab, block.pid, "n2", "auto")
    arrived(lab, block.pid, 1)
    lab.run("n2", "mosctl expel", check=True)
    lab.wait_for(lambda: where(lab, block.pid) in ("n1", "n3"), 90, "it has left n2")
    lab.cut("n2")
    (left,) = [e for e in events(lab, block.pid, "move") if e.get("from") == "n2"]
    assert left["mode"] == "pre-copy-only" and "go down" in left["mode_why"], left
    assert left["rounds"] >= 1
    block.verified()
    arrived(lab, block.pid, 2)
    assert not [e for e in events(lab, block.pid, "lost")]
    # it may move on, and nothing of the node that is gone is waited for
    move(lab, block.pid, "n3" if where(lab, block.pid) == "n1" else "home", "pre-copy-only")
    block.verified()
    lab.signal("n1", block.pid, signal.SIGKILL)


@pytest.mark.parametrize(("node", "action"), [("n1", "die"), ("n2", "die"), ("n2", "fail")])
def test_who_dies_while_the_rest_is_fetched_in_the_pause(lab: Any, block: Block, faults: Faults, node: str, action: str) -> None:
    """The page source at home, or the pager: another takes over, and the move goes on; the rest is large, as nothing was sent before."""
    lab.run("n1", ["mosctl", "events"], check=True)
    faults.set(node, "mid_postcopy", action)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(move, lab, block.pid, "n2", "pre-copy-only")
        faults.wait(node, "mid_postcopy")
        faults.clear(node, "mid_postcopy")
        assert job.result(90)["mode"] == "pre-copy-only"
    block.verified()
    arrived(lab, block.pid, 1)


CHILD = """
import hashlib
r, down = os.pipe(); up, w = os.pipe()
pid = os.fork()
if not pid:
    os.close(down); os.close(up)
    memory = bytearray(os.urandom(1 << 20) * 64 + os.urandom(1 << 20) * 32)
    first = hashlib.md5(memory).digest()
    while os.read(r, 1):
        os.write(w, b'good' if hashlib.md5(memory).digest() == first else b'BAD!')
    os._exit(0)
os.close(r); os.close(w)
"""


def test_a_tree_that_leaves_home_keeps_everybody_s_memory_out_of_the_pause(lab: Any) -> None:
    """A child with 96 MiB: its frozen original holds them at home until they have arrived."""
    with servant(lab) as s:
        s.do(CHILD)
        assert s.ask("os.write(down, b'x') and os.read(up, 4)", 60) == b"good"
        for leg, to in enumerate(("n2", "n3", "home"), 1):
            result = move(lab, s.pid, to, "pre-copy" if leg != 2 else "post-copy")
            assert result["mode"] in ("pre-copy", "post-copy")
            assert s.ask("os.write(down, b'x') and os.read(up, 4)", 60) == b"good"
            arrived(lab, s.pid, leg)
            if leg == 1:
                lab.wait_for(lambda: lab.children("n1", s.pid) == [], what="only one process stands for the tree at home")
        dumps = re.findall(r"dump: .*, (\d+) bytes of memory in the images", lab.run("n1", f"cat /run/mig/log/agent-{s.pid}.log").stdout)
        assert dumps and all(int(n) < 32 << 20 for n in dumps)
        s.do("os.close(down)")
        assert s.ask("os.waitpid(pid, 0)[1]") == 0


def test_a_killed_agent_leaves_no_frozen_members(lab: Any, faults: Faults) -> None:
    """They are nobody's any more: omdiscd ends them."""
    with servant(lab) as s:
        s.do(CHILD)
        assert s.ask("os.write(down, b'x') and os.read(up, 4)", 60) == b"good"
        faults.set("n2", "mid_postcopy", "hang")
        move(lab, s.pid, "n2", "post-copy")
        faults.wait("n2", "mid_postcopy")
        assert len(lab.children("n1", s.pid)) > 1, "the child and the holder"
        assert kill(lab, "n1", "mig[.]agent[.]main")
        assert s.wait() == 137
        faults.clear("n2", "mid_postcopy")
        lab.wait_for(lambda: "mig-held-" not in lab.run("n1", "cat /proc/[0-9]*/cgroup").stdout, 30, "the frozen child is ended")


@pytest.mark.long
def test_a_link_that_is_cut_while_pages_go_before_the_freeze(lab: Any, block: Block) -> None:
    """The move fails, the process goes on where it is; with the link whole again it moves."""
    command = ["migrate", "--mode", "pre-copy", "--limit", "20", str(block.pid), "n2"]
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lab.run, "n1", command, timeout=150)
        lab.wait_for(lambda: "step pre-copy" in lab.run("n1", f"cat /run/mig/log/agent-{block.pid}.log").stdout, what="pages are sent")
        time.sleep(1)
        lab.cut("n2")
        block.verified()
        time.sleep(20)
        block.verified()
        r = job.result(60)
        assert r.returncode == 4 and "still running on n1" in r.stderr, r.stdout + r.stderr
        lab.heal("n2")
    lab.wait_for(lambda: lab.run("n1", ["mosctl", "isup", "n2"]).returncode == 0, 30, "n2 is seen again")
    assert move(lab, block.pid, "n2", "pre-copy")["mode"] == "pre-copy"
    block.verified()
    arrived(lab, block.pid, 1)


def test_nodes_whose_kernel_does_not_tell_of_writes(own_lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is compared instead, before the freeze and once more after the resume: away, on and home again, in the pause too."""
    monkeypatch.setenv("MIG_TRACKING", "compare")
    lab = own_lab(nodes=3)
    lab.let_move(False)
    block = Block(lab, "compared")
    for leg, (to, mode) in enumerate((("n2", "auto"), ("n3", "pre-copy-only"), ("home", "pre-copy")), 1):
        result = move(lab, block.pid, to, mode)
        assert result["mode"] == ("pre-copy" if mode == "auto" else mode) and result["rounds"] >= 1
        block.verified()
        arrived(lab, block.pid, leg)
    sent = [int(e["bytes"]) for e in events(lab, block.pid, "memory")]
    assert all(n < SIZE << 19 for n in sent), f"most of it was in the store: {sent}"
    assert "pre-copy by comparing" in lab.run("n1", f"cat /run/mig/log/agent-{block.pid}.log").stdout
    lab.signal("n1", block.pid, signal.SIGKILL)
