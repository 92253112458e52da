"""How much CPU guests get beside this node's own work: by cgroup, so that nothing of it is in the process when it moves on.

A nice value or SCHED_IDLE of the process itself would be dumped and restored elsewhere, and means nothing between two cgroups.  cgroup v2:
the weight of each cell, together that of one process of nice ``guest_nice``.  v1 (hybrid machines, containers): one group for all guests.
Where neither is to be had guests share as everybody does, and ``mosctl pool`` says so.

A guest that is just moving gets more than an equal share for that second: CRIU dumps it from inside, and on a machine that its owner keeps
busy it would otherwise not get away.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from mig.kernel import cgroup
from mig.kernel.cgroup import Cgroup
from omdiscd.guests import Guests

log = logging.getLogger(__name__)

GROUP, MOVING = "mig-guests", "mig-moving"
CELL = "mig-cell-"
"""How the cgroups of cells are named (:func:`mig.cell.house.cell_cgroup`)."""
_MOVING_NICE = -5
"""Three times an equal share.  Seen without: 64 MiB on a node of 0.6 CPUs with four busy loops of its owner's, at idle priority the move
was rolled back after 7 s, again and again."""
_V1_LEAST = 2  # cpu.shares


def weight(nice: int, unit: float) -> float:
    """The kernel's weight of a nice value (1.25 a step, nice 0 = ``unit``)."""
    return unit / 1.25**nice


class GuestShare:
    """``apply`` makes it so for the guests that run here now; cheap when nothing has changed."""

    def __init__(self, guests: Guests, home: str, nice: int) -> None:
        self.guests, self.home, self.nice = guests, home, nice
        self.idle = False
        """Guests run only when nobody else wants the CPU."""
        self.how = ""
        """What is in force, in words; "" without guests."""
        self._done: dict[int, object] = {}
        self._v1 = _v1_group()
        self._home_again: set[int] = set()

    def unit(self, count: int) -> float:
        """cgroup v2: the weight of one of ``count`` guests, which a share by age may be a part of."""
        return weight(max(0, self.nice), 100) / max(1, count)

    def apply(self) -> None:
        """Set what is not set yet."""
        kept = [k.state for k in self.guests.keepers() if k.state and k.state.host_pid]
        self._bring_home({s.host_pid for s in kept if s.home == self.home})
        states = [s for s in kept if s.home != self.home]
        here = {s.host_pid: s.state == "moving" for s in states}
        self._done = {p: d for p, d in self._done.items() if p in here}
        self._tidy(any(here.values()), bool(here))
        leave_alone = self.nice < 0 and not self.idle
        if leave_alone or not here:
            self.how = "as everybody (guest_nice = -1)" if here else ""
        for pid, moving in here.items():
            wanted = (moving, self.idle, self.nice, len(here))
            if self._done.get(pid) != wanted and not (leave_alone and pid not in self._done):
                try:
                    self._set(pid, len(here), moving)
                    self._done[pid] = wanted
                except ProcessLookupError:
                    continue  # it has ended
                except OSError as e:
                    self._done[pid] = wanted
                    self.how = f"as everybody: {e.filename}: {e.strerror}"
                    log.warning("guests keep their usual share of the CPU: %s: %s", e.filename, e.strerror)

    def _bring_home(self, pids: set[int]) -> None:
        """Guests that came home were started by us, but are this node's work."""
        if (work := cgroup.work_group()) is not None:
            for pid in pids - self._home_again:
                with contextlib.suppress(OSError):
                    for p in Cgroup(cgroup.of(pid)).procs():
                        if not _is_inside(p, work.name):
                            _put(work / "cgroup.procs", str(p))
        self._home_again = pids

    def _tidy(self, moving: bool, here: bool) -> None:
        for name, used in ((MOVING, moving), (GROUP, here)):
            if self._v1 is not None and not used and (group := self._v1 / name).is_dir():
                with contextlib.suppress(OSError):
                    group.rmdir()  # a guest that is just ending holds it for a moment

    def _set(self, pid: int, count: int, moving: bool) -> None:
        guest = cgroup.of(pid)
        cell = guest.parent
        if not cell.name.startswith(CELL):
            return  # it has just left its cell: what is in that group is not ours
        idle = self.idle and not moving
        nice = _MOVING_NICE if moving else max(0, self.nice)
        if (cell / "cpu.weight").exists():
            _put(cell / "cpu.idle", "1" if idle else "0")
            if not idle:
                _put(cell / "cpu.weight", str(max(1, round(weight(nice, 100) if moving else self.unit(count)))))
        elif self._v1 is not None:
            group = self._v1 / (MOVING if moving else GROUP)
            group.mkdir(exist_ok=True)
            if (group / "cpu.idle").exists():
                _put(group / "cpu.idle", "1" if idle else "0")
            if not idle or not (group / "cpu.idle").exists():
                _put(group / "cpu.shares", str(_V1_LEAST if idle else round(weight(nice, 1024))))
            for p in Cgroup(guest).procs():  # what they fork is born there
                with contextlib.suppress(ProcessLookupError):
                    if not _is_inside(p, group.name):
                        _put(group / "cgroup.procs", str(p))
        else:
            self.how = "as everybody: this machine has no cpu cgroup controller"
            return
        if not moving:
            self.how = "idle priority" if idle else f"nice {nice} together"


def _put(path: Path, text: str) -> None:
    path.write_text(text)


def _is_inside(pid: int, group: str) -> bool:
    """Whether it is in this v1 group, or in one below: somebody may divide further what guests get."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except FileNotFoundError:
        raise ProcessLookupError(3, f"no process {pid}") from None
    return any(group in path.split("/") for _, names, path in (line.split(":", 2) for line in lines) if "cpu" in names.split(","))


def _v1_group() -> Path | None:
    """The group of this node in the v1 cpu hierarchy, below which our guests' lie; None where there is none."""
    if (work := cgroup.work_group()) is not None:
        return work
    mine = ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if "cpu" in names.split(","):
            mine = path
    if not mine or mine.startswith("/.."):
        return None
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(where + mine.rstrip("/"))
    return None
