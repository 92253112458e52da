"""What runs here: one look at /proc an interval, which yields for every process how many of its threads were runnable, exactly.

A thread's schedstat counts the nanoseconds that it ran and the nanoseconds that it waited for a CPU.  The growth of their sum over an
interval, divided by the interval, is the mean number of runnable threads in it: no sampling error, also under a CPU quota, where most of
the time is waiting.  So one look a second replaces the ten samples a second of a count of threads in state R, at a tenth of the cost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = 1 / os.sysconf("SC_CLK_TCK")
_PF_KTHREAD = 0x00200000
_RECHECK = 64
"""Looks after which pids of kernel threads are looked at again: one could have been given to a process."""


@dataclass
class Process:
    """One process.  ``runnable``: mean runnable threads over the last interval; ``cpu_s``: CPU seconds so far; ``rss``: bytes."""

    pid: int
    start: int  # clock ticks since boot
    comm: str = ""
    ppid: int = 0
    state: str = ""
    cpu_s: float = 0.0
    rss: int = 0
    threads: int = 1
    runnable: float = 0.0
    busy: float = 0.0  # CPUs used over the last interval
    counters: dict[int, int] = field(default_factory=dict, repr=False)  # per thread: nanoseconds run + waited


class ProcessTable:
    """All user processes that this /proc shows."""

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}
        self._kernel: set[int] = set()
        self._last = 0.0
        self._looks = 0
        self._below: dict[int, list[int]] | None = None

    def look(self, now: float) -> None:
        """Bring the table up to date at monotonic time ``now``."""
        dt = now - self._last if self._last else 0.0
        self._last = now
        self._looks += 1
        if self._looks % _RECHECK == 0:
            self._kernel.clear()
        seen: dict[int, Process] = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or (pid := int(name)) in self._kernel:
                continue
            try:
                head, _, tail = _read(f"/proc/{pid}/stat").rpartition(b")")
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
            # only these of the 52 fields, not procfs.stat: this is most of what an idle omdiscd does
            f = tail.split(None, 22)
            if int(f[6]) & _PF_KTHREAD:
                self._kernel.add(pid)
                continue
            start = int(f[19])
            p = self.processes.get(pid)
            new = p is None or p.start != start
            if p is None or new:
                p = Process(pid, start)
            cpu_s = (int(f[11]) + int(f[12])) * TICK
            state = f[0].decode()
            # a process that used no tick and does not run now has nothing to count; its counters are right when it wakes
            active = new or cpu_s != p.cpu_s or state == "R" or p.runnable > 0
            p.comm = os.fsdecode(head.partition(b"(")[2])
            p.ppid, p.state, p.rss, p.threads = int(f[1]), state, int(f[21]) * PAGE, int(f[17])
            p.busy = (cpu_s - p.cpu_s) / dt if dt and not new else 0.0
            p.cpu_s = cpu_s
            if active:
                p.runnable = self._count(p, dt, new)
            seen[pid] = p
        self.processes = seen
        self._below = None

    def _count(self, p: Process, dt: float, new: bool) -> float:
        counters: dict[int, int] = {}
        grown = 0
        try:
            tids = [p.pid] if p.threads == 1 else list(map(int, os.listdir(f"/proc/{p.pid}/task")))
            for t in tids:
                # /proc/PID/schedstat is the leader's alone
                run, wait, _ = _read(f"/proc/{p.pid}/schedstat" if len(tids) == 1 else f"/proc/{p.pid}/task/{t}/schedstat").split()
                counters[t] = int(run) + int(wait)
                # a thread or process that was not there at the last look lived its whole life in this interval; at our first look we
                # do not know, and clamping to the interval bounds what sleepers bring along
                grown += min(counters[t] - p.counters.get(t, 0), int(dt * 1e9))
        except (FileNotFoundError, ProcessLookupError):
            return 0.0  # ended while we looked
        first = new and not self.processes
        p.counters = counters
        return 0.0 if first or not dt else grown / (dt * 1e9)

    def ancestors(self, pid: int) -> list[int]:
        """Parent, grandparent and so on, as of the last look."""
        out: list[int] = []
        p = self.processes.get(pid)
        while p and p.ppid and p.ppid not in out:
            out.append(p.ppid)
            p = self.processes.get(p.ppid)
        return out

    def runnable_of(self, pid: int) -> float:
        """Mean runnable threads of ``pid`` and all below it."""
        return sum(self.processes[p].runnable for p in (pid, *self.below(pid)) if p in self.processes)

    def below(self, pid: int) -> list[int]:
        """All processes below ``pid``, as of the last look."""
        if self._below is None:
            self._below = {}
            for p in self.processes:
                for a in self.ancestors(p):
                    self._below.setdefault(a, []).append(p)
        return self._below.get(pid, [])


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1024)
    finally:
        os.close(fd)
