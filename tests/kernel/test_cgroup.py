"""The v2 freezer and kill switch on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup
from tests.kernel.deputy_lab import until

COUNT = "import sys\nn = 0\nwhile True:\n n += 1\n print(n, flush=True)"
BUSY_TREE = """
import os, time
def grow(depth):
    while depth and os.fork() == 0:
        depth -= 1
    while True:
        if os.fork() == 0:
            time.sleep(.01); os._exit(0)
        os.wait() if depth % 2 else os.waitpid(-1, os.WNOHANG)
        time.sleep(.002)
grow(4)
"""


@pytest.fixture
def group() -> Iterator[Cgroup]:
    g = Cgroup(cgroup.root() / f"mig-test-cgroup-{os.getpid()}")
    g.create()
    yield g
    if g.exists():
        g.kill()
        g.remove()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    p = subprocess.Popen(["sleep", "1000"])
    yield p
    p.kill()
    p.wait()


def test_the_mount_is_found_in_mounts() -> None:
    text = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nnone /sys/fs/two\\040words cgroup2 rw 0 0\n"
    assert cgroup.parse_mounts(text) == Path("/sys/fs/two words")
    with pytest.raises(FileNotFoundError):
        cgroup.parse_mounts("proc /proc proc rw 0 0\n")
    assert (cgroup.root() / "cgroup.procs").exists()


def test_members_come_and_go(group: Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    home = cgroup.of(sleeper.pid)
    group.add(sleeper.pid)
    assert group.procs() == [sleeper.pid] and cgroup.of(sleeper.pid) == group.path and group.populated()
    Cgroup(home).add(sleeper.pid)
    assert group.procs() == [] and not group.populated()
    group.remove()
    assert not group.exists()
    group.remove()  # once more is fine


def test_a_gone_process_cannot_be_added(group: Cgroup) -> None:
    p = subprocess.Popen(["true"])
    p.wait()
    with pytest.raises(ProcessLookupError):
        group.add(p.pid)
    with pytest.raises(ProcessLookupError):
        cgroup.of(p.pid)


def test_frozen_processes_do_nothing_and_their_parent_sees_nothing(group: Cgroup) -> None:
    with subprocess.Popen([sys.executable, "-c", COUNT], stdout=subprocess.PIPE) as p:
        assert p.stdout is not None
        group.add(p.pid)
        p.stdout.readline()
        group.freeze()
        assert group.is_frozen()
        used = procfs.stat(p.pid)
        assert os.waitid(os.P_PID, p.pid, os.WSTOPPED | os.WCONTINUED | os.WEXITED | os.WNOHANG) is None
        now = procfs.stat(p.pid)
        assert (now.utime, now.stime, now.state) == (used.utime, used.stime, used.state) and now.state != "T"
        group.thaw()
        assert not group.is_frozen()
        seen = [int(p.stdout.readline()) for _ in range(20000)]
        assert seen == list(range(2, 20002))  # it went on where it was
        group.kill()


def test_frozen_processes_can_be_killed_and_the_group_removed(group: Cgroup) -> None:
    p = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000; true"])
    group.capture(lambda: procfs.tree(p.pid))
    group.freeze()
    group.kill()
    assert p.wait(15) == -signal.SIGKILL
    group.remove()
    assert not group.exists()


def test_a_stopped_process_counts_as_frozen(group: Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.add(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGSTOP)
    until(lambda: procfs.state(sleeper.pid) == "T", "stopped")
    group.freeze()
    group.thaw()
    assert procfs.state(sleeper.pid) == "T"


def test_a_tree_that_never_stops_forking_is_caught_whole(group: Cgroup) -> None:
    p = subprocess.Popen([sys.executable, "-c", BUSY_TREE])
    until(lambda: len(procfs.tree(p.pid)) > 4, "a tree")
    members = group.capture(lambda: procfs.tree(p.pid))
    assert p.pid in members and len(members) > 4
    group.freeze()
    alive = [q for q in procfs.tree(p.pid) if procfs.state(q) != "Z"]
    assert set(alive) == set(group.procs())
    group.kill()
    assert p.wait(15) == -signal.SIGKILL


def test_a_thaw_below_a_frozen_group_says_so(group: Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    inner = Cgroup(group.path / "inner")
    inner.create()
    inner.add(sleeper.pid)
    group.freeze()
    assert inner.is_frozen()
    with pytest.raises(TimeoutError):
        inner.thaw(timeout=0.05)
    group.thaw()
    assert not inner.is_frozen()
    inner.kill()
    sleeper.wait(15)
    group.remove()  # with what is below it
    assert not group.exists()


def test_a_group_in_use_is_not_removed(group: Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.add(sleeper.pid)
    with pytest.raises(OSError, match="busy"):
        group.remove(timeout=0.02)
