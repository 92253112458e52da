"""What a lab is: its name, its nodes, and where everything of it lies.

All that a lab consists of can be found from its name alone: the directory ``/run/moslab/NAME`` (a tmpfs with the nodes' disks and the
file that holds the switch's network namespace open) and the cgroup ``moslab-NAME`` that every process of it is born in.  So ``down``
works after any crash, whatever was written of :data:`Lab.description` by then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mig.errors import BadInput
from mig.kernel.cgroup import Cgroup, root

LABS = Path("/run/moslab")
DEFAULT = "lab"
MAX_NODES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


@dataclass
class Node:
    """One virtual machine of a lab; ``cpus`` is the quota in CPUs at full speed, of which ``speed`` is the share that it gets."""

    index: int  # 1..
    addr: str
    mac: str
    cpus: float
    speed: float = 1.0

    @property
    def name(self) -> str:
        """n1, n2, …"""
        return f"n{self.index}"

    @property
    def quota(self) -> float:
        """CPUs that its processes get together."""
        return self.cpus * self.speed


@dataclass
class Lab:
    """A lab as described by ``lab.json``; the paths are valid before it exists and after it is gone."""

    name: str
    nodes: list[Node] = field(default_factory=list)
    link: int = 0  # bit/s in each direction of each node; 0: as fast as it goes
    settings: dict[str, Any] = field(default_factory=dict)  # keys of omdiscd.toml that differ from the lab's own

    @property
    def directory(self) -> Path:
        """The lab's tmpfs."""
        return LABS / self.name

    @property
    def description(self) -> Path:
        """Written when all that ``up`` was asked for has been checked, before anything is started."""
        return self.directory / "lab.json"

    @property
    def switch(self) -> Path:
        """A bind mount of the network namespace that has the bridge."""
        return self.directory / "switch"

    @property
    def criu_cache(self) -> Path:
        """What CRIU found out about this kernel, for all nodes; missing where there is no CRIU."""
        return self.directory / "criu" / "criu.kdat"

    @property
    def cgroup(self) -> Cgroup:
        """v2 group above all nodes'."""
        return Cgroup(root() / f"moslab-{self.name}")

    def node_cgroup(self, node: Node) -> Cgroup:
        """v2 group of a node; the root of what the node sees."""
        return Cgroup(self.cgroup.path / node.name)

    def node_directory(self, node: Node) -> Path:
        """Disk, socket and state of a node."""
        return self.directory / node.name

    def socket(self, node: Node) -> Path:
        """Where the node's pid 1 listens."""
        return self.node_directory(node) / "init.sock"

    def pid_file(self, node: Node) -> Path:
        """The node's pid 1 as the machine sees it."""
        return self.node_directory(node) / "init.pid"

    def cut_file(self, node: Node) -> Path:
        """Exists while the node's link is cut."""
        return self.node_directory(node) / "cut"

    def node(self, name: str) -> Node:
        """The node of that name; raises :class:`BadInput`."""
        for n in self.nodes:
            if n.name == name:
                return n
        raise BadInput(f"there is no node {name} in lab {self.name}", hint="its nodes are " + " ".join(n.name for n in self.nodes))

    def save(self) -> None:
        """Write the description."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        self.description.write_text(text)

    def exists(self) -> bool:
        """Whether anything of a lab of this name is there: one that is up, is being started, or was left by a crash."""
        return self.directory.exists() or self.cgroup.exists()


def check_name(name: str) -> str:
    """The name itself; raises :class:`BadInput` unless it can be a directory, a cgroup and part of a mount option."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"a lab cannot be called {name!r}", hint="1 to 32 letters, digits, - and _; the first a letter or digit")
    return name


def load(name: str) -> Lab:
    """The lab that ``up`` made; raises :class:`BadInput` when there is none."""
    lab = Lab(check_name(name))
    try:
        m = json.loads(lab.description.read_text())
    except FileNotFoundError:
        if lab.exists():
            raise BadInput(f"lab {name} is not complete: its start was interrupted", hint=f"moslab --lab {name} down") from None
        raise BadInput(f"there is no lab {name}", hint=f"moslab --lab {name} up") from None
    lab.nodes = [Node(**n) for n in m["nodes"]]
    lab.link, lab.settings = m["link"], m["settings"]
    return lab


def plan(
    name: str,
    count: int,
    *,
    speeds: dict[str, float],
    link: int,
    settings: dict[str, Any],
    cpus: float | None = None,
    cores: int | None = None,
) -> Lab:
    """A lab of ``count`` nodes.  Each gets ``cpus`` CPUs, times its speed; by default 0.9 x cores / count, so that all together have
    room for their work on this machine.  Raises :class:`BadInput` for unknown nodes and for more CPUs than there are.

    The subnet is derived from the name: labs are networks of their own and could share one, but logs read better when they do not.
    """
    if not 1 <= count <= MAX_NODES:
        raise BadInput(f"a lab has 1 to {MAX_NODES} nodes, not {count}")
    lab = Lab(check_name(name), link=link, settings=settings)
    a, b = hashlib.sha256(name.encode()).digest()[:2]
    cores = cores or len(os.sched_getaffinity(0))
    cpus = round(0.9 * cores / count, 3) if cpus is None else cpus
    if not 0.01 <= cpus <= cores:
        raise BadInput(f"--cpus {cpus:g}: this machine has {cores}")
    for i in range(1, count + 1):
        lab.nodes.append(Node(i, f"10.{a}.{b}.{i}", f"02:6d:6c:{a:02x}:{b:02x}:{i:02x}", cpus))
    for node, speed in speeds.items():
        if not 0.01 <= speed <= 1:
            raise BadInput(f"speed {speed:g} of {node}: must be between 0.01 and 1")
        lab.node(node).speed = speed
    return lab
