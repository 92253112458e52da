"""A destination that has not the memory: refused before the freeze, or given up before the commit; the process goes on where it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mig.kernel import procfs

from .test_memory import SIZE, Block, arrived, move


def outside(lab: Any, node: str, pid: int) -> int:
    """The pid, as the machine sees it, of a process of a node."""
    net = os.readlink(f"/proc/{lab.lab.pid_file(lab.lab.node(node)).read_text().strip()}/ns/net")
    for p in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if procfs.status(p).nspid[-1] == pid and os.readlink(f"/proc/{p}/ns/net") == net:
                return p
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
    raise AssertionError(f"no process {pid} of {node}")


@contextmanager
def memory_limit(lab: Any, node: str, size: int) -> Iterator[None]:
    """The node's omdiscd with its nursery, and all that they start from now on, together get so many bytes of memory, and no swap."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    v1 = next((m[1] for m in mounts if m[2] == "cgroup" and "memory" in m[3].split(",")), "")
    if not v1:
        for group in (lab.lab.cgroup.path.parent, lab.lab.cgroup.path):
            (group / "cgroup.subtree_control").write_text("+memory")
        limit = lab.lab.node_cgroup(lab.lab.node(node)).path / "memory.max"
        limit.write_text(str(size + int(limit.with_name("memory.current").read_text())))
        swap = limit.with_name("memory.swap.max")
        if swap.exists():  # as this kernel can swap
            swap.write_text("0")
        yield
        if swap.exists():
            swap.write_text("max")
        limit.write_text("max")
        return
    group = Path(v1) / f"mig-test-{os.getpid()}"
    group.mkdir()
    daemon = outside(lab, node, lab.daemon_pid(node))
    try:
        (group / "memory.limit_in_bytes").write_text(str(size))
        (group / "memory.swappiness").write_text("0")
        (group / "cgroup.procs").write_text(str(daemon))
        for child in procfs.children(daemon):  # none is new from here on: what omdiscd starts now is in the group already
            (group / "cgroup.procs").write_text(str(child))
        yield
    finally:
        while members := (group / "cgroup.procs").read_text().split():
            for p in members:
                try:
                    (Path(v1) / "cgroup.procs").write_text(p)
                except ProcessLookupError:
                    continue  # it ended just now
        group.rmdir()


@pytest.mark.parametrize("mode", ["full", "pre-copy"])
def test_memory_that_runs_out_at_the_destination(own_lab: Callable[..., Any], mode: str) -> None:
    """Its omdiscd sees the machine's free memory, so it agrees; the kernel then refuses: nothing is lost, and with more memory it moves."""
    lab = own_lab(nodes=2)
    lab.let_move(False)
    block = Block(lab, f"short-{mode}")
    with memory_limit(lab, "n2", (SIZE * 3 // 4) << 20):
        r = lab.run("n1", ["migrate", "--mode", mode, str(block.pid), "n2"], timeout=150)
        assert r.returncode == 4 and "still running on n1" in r.stderr, r.stdout + r.stderr
        block.verified()
    if not lab.daemon_pid("n2"):  # the kernel may have chosen it, which costs no guest anything
        lab.restart_daemon("n2")
    lab.wait_for(lambda: lab.run("n1", ["mosctl", "isup", "n2"]).returncode == 0, 30, "n2 is seen")
    move(lab, block.pid, "n2", mode)
    block.verified()
    if mode != "full":
        arrived(lab, block.pid, 1)
    lab.signal("n1", block.pid, signal.SIGKILL)


def test_a_destination_that_knows_it_is_short_refuses(own_lab: Callable[..., Any]) -> None:
    """Before anything is done to the process."""
    lab = own_lab("--set", f"mem_total={(SIZE * 3 // 4) << 20}", nodes=2)
    lab.let_move(False)
    block = Block(lab, "refused")
    r = lab.run("n1", ["migrate", str(block.pid), "n2"], timeout=60)
    assert r.returncode == 3 and "MiB of memory to give" in r.stderr, r.stdout + r.stderr
    assert not lab.path("n1", f"/proc/{block.pid}/cgroup").read_text().count("mig-P")
    block.verified()
    lab.signal("n1", block.pid, signal.SIGKILL)
