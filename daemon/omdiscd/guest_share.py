"""How much CPU guests get beside this node's own work: by cgroup, so that nothing of it is in the process when it moves on.

A nice value or SCHED_IDLE of the process itself would be dumped and restored elsewhere, and means nothing between two cgroups.  cgroup v2:
the weight of each cell, together that of one process of nice ``guest_nice``.  v1 (hybrid machines, containers): one group for all guests.
Where neither is to be had guests share as everybody does, and ``mosctl pool`` says so.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from mig.kernel import cgroup
from mig.kernel.cgroup import Cgroup
from omdiscd.guests import Guests

log = logging.getLogger(__name__)

GROUP = "mig-guests"
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

    def unit(self, count: int) -> float:
        """cgroup v2: the weight of one of ``count`` guests, which a share by age may be a part of."""
        return weight(max(0, self.nice), 100) / max(1, count)

    def apply(self) -> None:
        """Set what is not set yet."""
        here = {k.state.host_pid for k in self.guests.keepers() if k.state and k.state.host_pid and k.state.home != self.home}
        self._done = {p: d for p, d in self._done.items() if p in here}
        if not here:
            self.how = ""
            if self._v1 is not None and self._v1.is_dir():
                with contextlib.suppress(OSError):
                    self._v1.rmdir()  # a guest that is just ending holds it for a moment
            return
        leave_alone = self.nice < 0 and not self.idle
        if leave_alone:
            self.how = "as everybody (guest_nice = -1)"
        wanted = (self.idle, self.nice, len(here))
        for pid in here:
            if self._done.get(pid) != wanted and not (leave_alone and pid not in self._done):
                with contextlib.suppress(ProcessLookupError):
                    self._set(pid, len(here))
                    self._done[pid] = wanted

    def _set(self, pid: int, count: int) -> None:
        nice = max(0, self.nice)
        cell = cgroup.of(pid).parent
        try:
            if (cell / "cpu.weight").exists():
                _put(cell / "cpu.idle", "1" if self.idle else "0")
                if not self.idle:
                    _put(cell / "cpu.weight", str(max(1, round(self.unit(count)))))
                self.how = "idle priority" if self.idle else f"nice {nice} together (cpu.weight)"
            elif self._v1 is not None:
                self._v1.mkdir(exist_ok=True)
                if (self._v1 / "cpu.idle").exists():
                    _put(self._v1 / "cpu.idle", "1" if self.idle else "0")
                if not self.idle:
                    _put(self._v1 / "cpu.shares", str(max(_V1_LEAST, round(weight(nice, 1024)))))
                elif not (self._v1 / "cpu.idle").exists():
                    _put(self._v1 / "cpu.shares", str(_V1_LEAST))
                for p in Cgroup(cgroup.of(pid)).procs():  # what they fork is born there
                    with contextlib.suppress(ProcessLookupError):
                        if not _is_inside(p):
                            _put(self._v1 / "cgroup.procs", str(p))
                self.how = "idle priority" if self.idle else f"nice {nice} together (cpu.shares)"
            else:
                self.how = "as everybody: this machine has no cpu cgroup controller"
        except OSError as e:
            if isinstance(e, ProcessLookupError):
                raise
            self.how = f"as everybody: {e.filename or cell}: {e.strerror}"
            log.warning("guests keep their usual share of the CPU: %s: %s", e.filename or cell, e.strerror)


def _put(path: Path, text: str) -> None:
    path.write_text(text)


def _is_inside(pid: int) -> bool:
    """Whether it is in the guests' v1 group, or in one below: somebody may divide further what guests get."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except FileNotFoundError:
        raise ProcessLookupError(3, f"no process {pid}") from None
    return any(GROUP in path.split("/") for _, names, path in (line.split(":", 2) for line in lines) if "cpu" in names.split(","))


def _v1_group() -> Path | None:
    """Our guests' group below our own in the v1 cpu hierarchy; None where there is none."""
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
            return Path(where + mine.rstrip("/")) / GROUP
    return None
