"""Memory that follows the guest: every mode, and everything that can die or be cut while pages are on their way."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guests import build

from .helpers import GUESTS, file_text, wait_text, where

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


def test_page_source_pager_and_guardian_die_and_no_byte_is_wrong(lab: Any, block: Block) -> None:
    """Each of them with -9, while pages are on their way."""
    move(lab, block.pid, "n2", "post-copy")
    assert kill(lab, "n1", "mig.memory.source_main")
    time.sleep(0.2)
    assert kill(lab, "n2", "mig.memory.pager_main"), "memory was still arriving"
    block.verified()
    arrived(lab, block.pid, 1)
    assert where(lab, block.pid) == "n2"
    log = lab.run("n2", "cat /run/mig/log/keeper-*").stdout
    assert "another has taken over" in log


@pytest.mark.long
def test_a_cut_link_makes_the_guest_wait_and_loses_nothing(lab: Any, block: Block) -> None:
    """Cut in the middle of post-copy for longer than a connection's patience."""
    move(lab, block.pid, "n2", "post-copy")
    lab.cut("n2")
    before = file_text(lab, block.file)
    time.sleep(12)
    assert "BAD" not in file_text(lab, block.file)
    lab.heal("n2")
    block.verified(90)
    assert len(file_text(lab, block.file)) > len(before)
    arrived(lab, block.pid, 1)


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
