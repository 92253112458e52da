"""Local share by age (:mod:`mig.economy.shares`): jobs and guests that have had their share of the CPU stand back for those that have not.

A job that is old enough gets a cgroup of its own whose weight falls with its CPU time; a young one stays where it is.  Whoever is not a job
is never touched.  cgroup v2: ``cpu.weight``, the group lies beside the job's own, so that the limits above both stay in force.  v1 (hybrid
machines, containers): ``cpu.shares``, below our own group.  Where neither is to be had nothing is done, and the log says so once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mig.economy.shares import share
from mig.kernel import cgroup
from omdiscd.guests import Guests
from omdiscd.jobs import Jobs
from omdiscd.resources import own_cgroup
from omdiscd.sampler import Sampler

log = logging.getLogger(__name__)

PREFIX = "mig-age-"
GUESTS = "mig-guests"
"""The v1 group in which guests have their priority against local work; their shares divide what that gets."""
_V2, _V1 = 100, 1024
"""The weights of an ordinary group."""


@dataclass(frozen=True)
class Wanted:
    """The processes ``pids`` of the job or guest ``root`` together get ``part`` of the weight of one new job."""

    root: int
    pids: tuple[int, ...]
    part: float
    guest: bool


class Shares:
    """``wanted`` is made of what the loop knows; ``apply`` writes files and may run in a thread."""

    def __init__(self, jobs: Jobs, guests: Guests, sampler: Sampler) -> None:
        self.jobs, self.guests, self.sampler = jobs, guests, sampler
        self.guest_weight: Callable[[int], float] = lambda count: float(_V2)
        """cgroup v2: the weight of a new guest, given how many guests are here."""
        self._v1 = own_cgroup("cpu") or _v1_root()
        self._groups: set[Path] = set(self._v1.glob(f"{PREFIX}*")) if self._v1 is not None else set()
        self._said = False

    @property
    def used(self) -> bool:
        """Whether there are groups of ours, perhaps of something that has ended."""
        return bool(self._groups)

    def wanted(self) -> list[Wanted]:
        """All jobs and guests here that have a share of their own."""
        table, me = self.sampler.table, self.sampler.info.name
        away = {a.state.pid for a in self.guests.agents() if a.state and (a.state.where != me or a.state.state != "running")}
        states = [k.state for k in self.guests.keepers() if k.state]
        here = {s.host_pid: s.home for s in states if s.host_pid and s.state == "running"}
        roots = {p: home != me for p, home in here.items()} | {p: False for p in self.jobs.table if p not in away}
        out = []
        for root, guest in roots.items():
            tree = [p for p in (root, *table.below(root)) if p in table.processes and (p == root or p not in roots)]
            cpu_s = sum(table.processes[p].cpu_s for p in tree)
            if tree and (part := share(cpu_s)) < 1.0:
                out.append(Wanted(root, tuple(tree), part * max(1.0, sum(table.processes[p].runnable for p in tree)), guest))
        return out

    def apply(self, wanted: list[Wanted]) -> None:
        """Make it so, and remove groups of those that have ended."""
        used: set[Path] = set()
        for w in wanted:
            try:
                if (group := self._set(w, len(wanted))) is not None:
                    used.add(group)
            except ProcessLookupError:
                continue  # ended meanwhile
            except OSError as e:
                if not self._said:
                    self._said = True
                    log.warning("jobs share the CPU as everybody does: %s: %s", e.filename, e.strerror)
        for group in self._groups - used:
            with contextlib.suppress(OSError):  # somebody is in it still: next time
                group.rmdir()
        self._groups = {g for g in self._groups | used if g.exists()}

    def _set(self, w: Wanted, count: int) -> Path | None:
        # a group does not inherit what nice(1) took from its members
        w = replace(w, part=w.part / 1.25 ** os.getpriority(os.PRIO_PROCESS, w.root))
        if self._v1 is not None:
            guests = self._v1 / GUESTS
            group = guests / str(w.root) if w.guest and guests.is_dir() else self._v1 / f"{PREFIX}{w.root}"
            group.mkdir(exist_ok=True)
            _put(group / "cpu.shares", str(max(2, round(_V1 * w.part))))
            _gather(group, w.pids)
            return group
        own = cgroup.of(w.root)
        if w.guest:
            # a cell is a group already; one of idle priority has no weight
            if (own.parent / "cpu.idle").exists() and (own.parent / "cpu.idle").read_text().strip() == "1":
                return None
            _put(own.parent / "cpu.weight", str(min(10000, max(1, round(self.guest_weight(count) * w.part)))))
            return None
        if own == cgroup.root() or own.name.startswith("mig-P"):
            return None  # it is about to move
        group = own if own.name == f"{PREFIX}{w.root}" else own.parent / f"{PREFIX}{w.root}"
        if not group.exists():
            controllers = own.parent / "cgroup.subtree_control"
            if "cpu" not in controllers.read_text().split():
                controllers.write_text("+cpu")
            group.mkdir()
        _put(group / "cpu.weight", str(min(10000, max(1, round(_V2 * w.part)))))
        _gather(group, w.pids)
        return group


def _gather(group: Path, pids: tuple[int, ...]) -> None:
    inside = set((group / "cgroup.procs").read_text().split())
    for p in pids:
        if str(p) not in inside:
            with contextlib.suppress(ProcessLookupError):
                _put(group / "cgroup.procs", str(p))


def _put(path: Path, text: str) -> None:
    path.write_text(text)


def _v1_root() -> Path | None:
    """Where a v1 cpu hierarchy is mounted in whose root we are."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(where)
    return None
