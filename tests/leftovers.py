"""What a test run can leave behind: processes, mounts, network interfaces and namespaces, cgroups, lab directories."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MARK = "MIG_TEST_RUN"
"""Environment variable that every process of a run inherits."""
_OURS = re.compile(r"^(mig|moslab)")


@dataclass(frozen=True)
class Snapshot:
    """What is on the machine, as lines that name it."""

    mounts: frozenset[str]
    interfaces: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    labs: frozenset[str]

    @classmethod
    def take(cls) -> Self:
        return cls(_mounts(), _names(Path("/sys/class/net")), _names(Path("/run/netns")), _cgroups(), _names(Path("/run/moslab")))

    def new_since(self, before: Snapshot) -> list[str]:
        """What is there now and was not before; what a lab does that ran already is that lab's business."""
        old = (*before.cgroups, *(f"/run/moslab/{lab}" for lab in before.labs))
        kinds = ("mounts", "interfaces", "namespaces", "cgroups", "labs")
        new = [(kind[:-1], x) for kind in kinds for x in sorted(getattr(self, kind) - getattr(before, kind))]
        return [f"{kind}: {x}" for kind, x in new if not any(x.startswith(f"{o}/") for o in old)]


def _names(directory: Path) -> frozenset[str]:
    return frozenset(os.listdir(directory)) if directory.is_dir() else frozenset()


def _mounts() -> frozenset[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(f"{f[4]} ({line.split(' - ')[1].split()[0]})" for line in lines for f in [line.split()])


def _cgroups() -> frozenset[str]:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [f[1] for f in lines if f[2] in ("cgroup", "cgroup2")]
    return frozenset(path for r in roots for path, _, _ in os.walk(r) if _OURS.match(os.path.basename(path)))


def _marked() -> list[str]:
    """Processes of this run, other than this one."""
    mark, found = f"{MARK}={os.environ[MARK]}".encode(), []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {name}: {command[:120]}")
        except OSError:
            continue  # it ended, or is the kernel's
    return found


def leftovers(before: Snapshot, *, patience: float = 5.0) -> tuple[list[str], list[str]]:
    """(processes of this run, everything else that is new), after giving it ``patience`` seconds to go by itself."""
    end = time.monotonic() + patience
    while True:
        processes, rest = _marked(), Snapshot.take().new_since(before)
        if not (processes or rest) or time.monotonic() > end:
            return processes, rest
        time.sleep(0.2)
