"""The cgroups of a lab, with a CPU quota for each node: by cgroup v2 where it has the cpu controller, else by v1's.

The quota is for the node's work, which pid 1 and all that it starts are in (:data:`WORK`); omdiscd and its helpers are outside: on a real
machine they come before all others by their nice value, where a quota would stop everybody alike.  With 25 busy processes on half a CPU
a move of 9 MiB took 4 to 15 s under the quota, for 0.2 s of CPU time.  (With cgroup v2 everything of a node is under its quota.)

The period is 10 ms, not the kernel's 100: a throttled node then stands still for a few milliseconds at a time, as a slower machine
would, instead of for longer than a whole migration takes.
"""

from __future__ import annotations

import os
from pathlib import Path

from mig.kernel import cgroup

from .lab import Lab, Node

PERIOD_US = 10_000
WORK = "work"
"""v1: below a node's group, with the quota."""
_LAUNCH = "launch"
"""Leaf for the processes of ``moslab up`` itself: v2 allows members beside limited groups in leaves only."""


def v1_cpu() -> Path | None:
    """Where the v1 cpu controller is mounted; None on a unified system."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        f = line.split(" ")
        if f[2] == "cgroup" and "cpu" in f[3].split(","):
            return Path(f[1])
    return None


def v1_controllers(mount: Path) -> str:
    """The options under which the hierarchy at ``mount`` can be mounted again: ``cpu``, or ``cpu,cpuacct`` where they are joined."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        f = line.split(" ")
        if f[1] == str(mount):
            return ",".join(o for o in f[3].split(",") if o in ("cpu", "cpuacct"))
    return "cpu"


def create(lab: Lab) -> str:
    """Make the lab's groups and set the quotas.

    Returns why there are none: on a unified system the cpu controller may not be for us to give on, as in a container whose own
    processes are members of its root group (``EBUSY``).  "" where all is well.
    """
    v1 = v1_cpu()
    lab.cgroup.create()
    cgroup.Cgroup(lab.cgroup.path / _LAUNCH).create()
    for node in lab.nodes:
        lab.node_cgroup(node).create()
    if v1 is None:
        try:
            for group in (cgroup.root(), lab.cgroup.path):
                (group / "cgroup.subtree_control").write_text("+cpu")
        except OSError as e:
            return f"the cpu controller cannot be enabled in {e.filename}: {e.strerror}"
    for node in lab.nodes:
        quota = max(1000, round(node.quota * PERIOD_US))
        if v1 is None:
            (lab.node_cgroup(node).path / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            group = v1 / f"moslab-{lab.name}" / node.name / WORK
            group.mkdir(parents=True, exist_ok=True)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
    return ""


def join_launch(lab: Lab) -> None:
    """Move the caller in, so that all it starts for the lab is born inside and ``down`` finds it, wherever a crash leaves it."""
    cgroup.Cgroup(lab.cgroup.path / _LAUNCH).add(os.getpid())


def join_node(lab: Lab, node: Node) -> None:
    """Move the caller into the node's groups."""
    lab.node_cgroup(node).add(os.getpid())
    v1 = v1_cpu()
    if v1 is not None:
        (v1 / f"moslab-{lab.name}" / node.name / "cgroup.procs").write_text(str(os.getpid()))


def kill_node(lab: Lab, node: Node) -> None:
    """SIGKILL everything of the node; returns when nothing is left.  The groups that its processes made go, its own stay."""
    group = lab.node_cgroup(node)
    group.kill()
    for below in group.path.iterdir():
        if below.is_dir():
            cgroup.Cgroup(below).remove()


def remove(lab: Lab) -> None:
    """SIGKILL everything of the lab and remove its groups, in both hierarchies; nothing there is fine."""
    if lab.cgroup.exists():
        lab.cgroup.kill()
        lab.cgroup.remove()
    v1 = v1_cpu()
    if v1 is not None:
        cgroup.Cgroup(v1 / f"moslab-{lab.name}").remove()
