"""The life of a lab and of its nodes: up, kill, start, down."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mig import paths
from mig.config import Config
from mig.errors import BadInput, MigError
from mig.kernel import cgroup, libc

from . import container, enter, limits, network
from .lab import LABS, Lab, Node

TMPFS_SHARE = "50%"
"""Most of the machine's memory that the nodes' disks of one lab may take."""


def defaults(lab: Lab, node: Node) -> dict[str, Any]:
    """The node's omdiscd configuration without the user's settings."""
    return {
        "name": node.name,
        "addr": node.addr,
        "interfaces": ["eth0"],
        "seeds": [n.addr for n in lab.nodes if n is not node],
        "speed": node.speed,
        "cpus": node.cpus,
        "allow_root_guests": True,
        "auto": "mosrun",
        "faults": True,
    }


def configuration(lab: Lab, node: Node) -> str:
    """omdiscd.toml; raises :class:`BadInput` for settings that omdiscd would not take."""
    values = {**defaults(lab, node), **lab.settings}
    Config.from_map(values, source="--set")
    return "".join(f"{k} = {_toml(v)}\n" for k, v in values.items())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def up(lab: Lab) -> list[str]:
    """Make the lab and start all its nodes with their daemons; what was made goes again on any error.

    Returns what the user should know: things that this machine cannot do and that a lab can be without.  Raises :class:`BadInput` when
    there is a lab of this name, and :class:`MigError` for what the machine cannot do and must.
    """
    key = secrets.token_bytes(32)
    disks = {n.name: container.Disk(configuration(lab, n), key) for n in lab.nodes}
    if lab.exists():
        raise BadInput(f"there is a lab {lab.name} already", hint=f"moslab --lab {lab.name} down")
    _claim(lab)
    home = cgroup.of(os.getpid())
    try:
        libc.mount("tmpfs", lab.directory, "tmpfs", libc.MS_NOSUID, f"mode=755,size={TMPFS_SHARE}")
        no_quota = limits.create(lab)
        limits.join_launch(lab)
        lab.save()
        network.make_switch(lab)
        prepare_criu(lab)
        launches = [container.Launch(lab, node, disks[node.name]) for node in lab.nodes]
        _connect_and_boot(lab, launches)
        cgroup.Cgroup(home).add(os.getpid())
    except BaseException:
        cgroup.Cgroup(home).add(os.getpid())  # out of the group that is about to be killed
        down(lab)
        raise
    return [f"the nodes have no CPU quota: {no_quota}"] if no_quota else []


def _claim(lab: Lab) -> None:
    """Make the lab's directory; raises :class:`BadInput` when somebody else just did."""
    while True:
        LABS.mkdir(exist_ok=True)
        try:
            lab.directory.mkdir()
        except FileNotFoundError:
            continue  # the `down` of another lab has just removed the parent
        except FileExistsError:
            raise BadInput(f"lab {lab.name} is being started by somebody else") from None
        return


def _connect_and_boot(lab: Lab, launches: list[container.Launch]) -> None:
    """Give the launched nodes their network, wait until they serve, start their daemons."""
    for launch in launches:
        network.plug(lab, launch.node, launch.pid())
    for launch in launches:
        launch.wait()
    for launch in launches:
        enter.start_daemon(lab, launch.node)


def prepare_criu(lab: Lab) -> None:
    """Let CRIU examine the kernel once for all nodes: with its cache in /run each of its starts takes 20-50 ms less.

    The cache holds facts of the running kernel only, so that it is as true in a node as where it was made.  CRIU writes it only where
    /run is a tmpfs.  No CRIU, or one that finds fault with this kernel: nothing is cached, and ``mosctl doctor`` tells why.
    """
    base = paths.libexec() / "criu"
    if not (base / "criu").exists():
        return
    lab.criu_cache.parent.mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            libc.unshare(libc.CLONE_NEWNS)
            libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
            libc.mount(lab.criu_cache.parent, "/run", None, libc.MS_BIND)
            subprocess.run([base / "ld.so", "--library-path", base / "lib", base / "criu", "check"], capture_output=True, timeout=10)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def kill(lab: Lab, node: Node) -> None:
    """Power loss: the link goes first, so that no peer hears a word, then every process.  The disk stays."""
    network.unplug(lab, node)
    limits.kill_node(lab, node)
    lab.pid_file(node).unlink(missing_ok=True)
    lab.cut_file(node).unlink(missing_ok=True)


def is_on(lab: Lab, node: Node) -> bool:
    """Whether the node has live processes."""
    group = lab.node_cgroup(node)
    return group.exists() and group.populated()


def start(lab: Lab, node: Node) -> None:
    """Boot a node that is off, from its disk; raises :class:`BadInput` when it is on."""
    if is_on(lab, node):
        raise BadInput(f"{node.name} is on already")
    home = cgroup.of(os.getpid())
    limits.join_launch(lab)
    try:
        _connect_and_boot(lab, [container.Launch(lab, node, None)])
    finally:
        cgroup.Cgroup(home).add(os.getpid())


def cut(lab: Lab, node: Node) -> None:
    """Let the node's link lose every packet; raises :class:`BadInput` when the node is off."""
    _must_be_on(lab, node)
    network.cut(lab, node)
    lab.cut_file(node).touch()


def heal(lab: Lab, node: Node) -> None:
    """Make the node's link whole again; raises :class:`BadInput` when the node is off."""
    _must_be_on(lab, node)
    network.heal(lab, node)
    lab.cut_file(node).unlink(missing_ok=True)


def _must_be_on(lab: Lab, node: Node) -> None:
    if not is_on(lab, node):
        raise BadInput(f"{node.name} of lab {lab.name} is off", hint=f"moslab --lab {lab.name} start {node.name}")


def down(lab: Lab) -> None:
    """Remove all of the lab, whole or broken; nothing there is fine."""
    limits.remove(lab)
    for where in sorted(_mounts_below(lab.directory), reverse=True):
        libc.umount2(where, libc.MNT_DETACH)
    if lab.directory.exists():
        shutil.rmtree(lab.directory)  # all of it was on the tmpfs, unless up died before mounting it
    with contextlib.suppress(OSError):  # others are there, or it is gone
        LABS.rmdir()


def _mounts_below(directory: Path) -> list[str]:
    """Mount points at or below a directory, one entry for each mount."""
    below = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        where = line.split(" ")[4].encode().decode("unicode_escape")
        if where == str(directory) or where.startswith(f"{directory}/"):
            below.append(where)
    return below


def status(lab: Lab) -> dict[str, Any]:
    """The lab as plain data: its nodes with state (on, off), cut, address, speed, CPUs, pid 1 here and omdiscd there (0: none)."""
    rows = []
    for node in lab.nodes:
        on = is_on(lab, node)
        daemon = init_pid = 0
        if on:
            with contextlib.suppress(MigError, FileNotFoundError):  # it went off meanwhile
                daemon = enter.daemon_pid(lab, node)
                init_pid = int(lab.pid_file(node).read_text())
        rows.append(
            {
                "name": node.name,
                "addr": node.addr,
                "state": "on" if on else "off",
                "cut": lab.cut_file(node).exists(),
                "speed": node.speed,
                "cpus": round(node.quota, 3),
                "init_pid": init_pid,
                "omdiscd": daemon,
            }
        )
    return {"lab": lab.name, "link": lab.link, "nodes": rows}
