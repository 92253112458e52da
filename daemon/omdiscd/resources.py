"""What this node has: CPUs and memory as its cgroup grants them, its CPU use, its speed.  A container is a smaller machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from pathlib import Path

import psutil

from mig import paths
from mig.kernel import cgroup
from mig.kernel.pidfd import boot_id

_INITIAL_PIDNS = 0xEFFFFFFC
"""Inode of the initial pid namespace (PROC_PID_INIT_INO): there /proc shows the whole machine."""
_STANDARD = 80.0
"""Rounds of :func:`_work` a second on a standard CPU, under CPython 3.11: that is the reference.  One core of an AMD EPYC in a virtual
machine has 1.09 (six measurements: 1.09 to 1.11)."""


@functools.cache
def own_cgroup(controller: str) -> Path | None:
    """Directory of our own cgroup for a v1 controller, or of the v2 hierarchy with ""; None where that is not mounted or is the root."""
    if controller in ("cpu", "cpuacct") and (work := cgroup.work_group()) is not None:
        return work
    mine = ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") if controller else names == "":
            mine = path
    if mine in ("", "/"):
        return None  # the root's figures are those of the machine, which psutil gives
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, fstype, options, *_ = line.split()
        if (fstype == "cgroup2" and not controller) or (fstype == "cgroup" and controller in options.split(",")):
            d = Path(where + mine)
            return d if d.is_dir() else None
    return None


def _number(directory: Path | None, name: str, field: int = 0) -> int | None:
    """The number in a cgroup file; None where the file is missing or says ``max`` or -1."""
    if directory is None:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        n = int((directory / name).read_text().split()[field])
        return n if 0 <= n < 1 << 60 else None
    return None


def cpus() -> float:
    """CPUs that we may use: the affinity mask, less where a cgroup quota says so."""
    n = float(len(os.sched_getaffinity(0)))
    v2, v1 = own_cgroup(""), own_cgroup("cpu")
    for quota, period in (
        (_number(v2, "cpu.max"), _number(v2, "cpu.max", 1)),
        (_number(v1, "cpu.cfs_quota_us"), _number(v1, "cpu.cfs_period_us")),
    ):
        if quota and period:
            n = min(n, quota / period)
    return n


def memory(limit: int = 0, taken: int = 0) -> tuple[int, int, int]:
    """Total, free and unused bytes: of the machine, less where a cgroup or ``limit`` says so; ``taken``: of the limit, by our processes.

    Free is what the kernel would give to a program, caches that it would drop included; unused is what nobody has.
    """
    m = psutil.virtual_memory()
    total, free, unused = int(m.total), int(m.available), int(m.free)
    v2, v1 = own_cgroup(""), own_cgroup("memory")
    for bound, used in (
        (_number(v2, "memory.max"), _number(v2, "memory.current")),
        (_number(v1, "memory.limit_in_bytes"), _number(v1, "memory.usage_in_bytes")),
    ):
        if bound and used is not None:
            total, free = min(total, bound), min(free, max(0, bound - used))
    if limit and limit < total:
        total, free = limit, max(0, min(free, limit - taken))
    return total, free, min(unused, free)


class CpuUse:
    """CPUs in use since the last call: of the machine, or of our cgroup where /proc shows only a part of the machine.

    It sees processes that were born and died between two looks at /proc.
    """

    def __init__(self) -> None:
        self._whole = os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PIDNS
        self._v2, self._v1 = own_cgroup(""), own_cgroup("cpuacct")
        self._last = self._seconds()
        self._at = time.monotonic()

    def _seconds(self) -> float:
        if self._whole:
            t = psutil.cpu_times()
            return float(t.user + t.nice + t.system)
        if (n := _number(self._v1, "cpuacct.usage")) is not None:
            return n / 1e9
        return (_number(self._v2, "cpu.stat", 1) or 0) / 1e6  # usage_usec N is the first line

    def sample(self) -> float:
        """Mean CPUs in use since the last call."""
        now, s = time.monotonic(), self._seconds()
        dt, used = now - self._at, s - self._last
        self._at, self._last = now, s
        return max(0.0, used / dt) if dt > 0 else 0.0


def speed() -> float:
    """Speed of one CPU relative to a standard one: measured once a boot, then remembered in the run-time directory."""
    cache = paths.RUN / "speed.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        m = json.loads(cache.read_text())
        if m["boot"] == boot_id():
            return float(m["speed"])
    # CPU time, not wall time: neither a quota nor other processes change it; the best of five leaves out cold caches
    best = min(_work() for _ in range(5))
    s = round(1 / (best * _STANDARD), 2)
    with contextlib.suppress(OSError):  # not remembered: measured again at the next start
        cache.write_text(json.dumps({"boot": boot_id(), "speed": s}))
    return s


def _work() -> float:
    """CPU seconds for a fixed round of integer work, memory traffic and calls."""
    t = time.thread_time()
    table = list(range(4096))
    x = 12345
    for _ in range(60_000):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        table[x & 4095] ^= x
    sorted(table * 4)
    return time.thread_time() - t
