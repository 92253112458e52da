"""cgroup v2 as we use it: a name for a group of processes, the freezer, and the kill switch.  No controller is needed."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

POLL = 0.0002
"""Seconds between two looks at cgroup.events: a freeze takes 0.1-0.4 ms, and inotify would add as much."""


def parse_mounts(text: str) -> Path:
    """The first cgroup2 mount in the text of /proc/mounts; raises ``FileNotFoundError`` without one."""
    for line in text.split("\n"):
        f = line.split(" ")
        if len(f) > 2 and f[2] == "cgroup2":
            return Path(f[1].encode().decode("unicode_escape"))  # blanks are written as \040
    raise FileNotFoundError(errno.ENOENT, "no cgroup2 file system is mounted")


def root() -> Path:
    """Where the cgroup v2 hierarchy is mounted (/sys/fs/cgroup, or …/unified beside v1); raises ``FileNotFoundError``."""
    return parse_mounts(Path("/proc/self/mounts").read_text())


def of(pid: int) -> Path:
    """The directory of the v2 cgroup of ``pid``, in our cgroup namespace; raises ``ProcessLookupError``, or ``OSError`` (``EXDEV``)
    when the process lies outside of our namespace's root."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError) as e:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from e
    for line in text.split("\n"):
        if line.startswith("0::"):
            name = line[3:].removesuffix(" (deleted)")
            if name.startswith("/.."):
                raise OSError(errno.EXDEV, f"the cgroup {name} of process {pid} lies outside of our cgroup namespace")
            return root() / name.lstrip("/")
    raise FileNotFoundError(errno.ENOENT, f"process {pid} is in no v2 cgroup")


def leave_unit(pid: int = 0) -> None:
    """Where systemd runs omdiscd: take a helper (ourselves, or ``pid``) out of the unit's cgroup, so that stopping the unit spares it.

    Children born later are out as well.  A cgroup tree that may not be written is no error: the unit's KillMode= spares helpers, too.
    """
    if os.environ.get("INVOCATION_ID"):
        with contextlib.suppress(OSError):
            helpers = Cgroup(root() / "mig-helpers")
            helpers.create()
            helpers.add(pid or os.getpid())


WORK = "MIG_CPU_CGROUP"
"""Environment: the v1 cpu group of this node's work where it is not our own: in a lab, whose nodes have a CPU quota that a node's omdiscd
and helpers are not under (they come first on a real machine, by their nice value, and a quota stops everybody alike)."""


def work_group() -> Path | None:
    """See :data:`WORK`; None where it is our own."""
    return Path(d) if (d := os.environ.get(WORK)) else None


class Cgroup:
    """One directory of the hierarchy; the object holds no state of its own, so any number may stand for the same group."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Cgroup({str(self.path)!r})"

    def create(self) -> None:
        """Make it, with its parents; an existing one is kept."""
        self.path.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        """Whether the directory is there."""
        return self.path.is_dir()

    def add(self, pid: int) -> None:
        """Move a process with all its threads in (5-15 ms on a busy machine: the kernel waits for an RCU grace period).

        Raises ``ProcessLookupError`` when it is gone.
        """
        self._write("cgroup.procs", str(pid))

    def procs(self) -> list[int]:
        """The members as we see them, sorted; zombies are not members.  Those outside of our pid namespace are 0, and left out."""
        return sorted({p for p in map(int, (self.path / "cgroup.procs").read_text().split()) if p})

    def capture(self, pids: Callable[[], Iterable[int]]) -> list[int]:
        """Move in what ``pids()`` lists until a look finds nobody outside: a tree that forks is caught whole, as children are born into
        their parent's group.  Returns the members.  Raises ``ProcessLookupError`` from ``pids`` itself, not for members that end."""
        while True:
            inside = set(self.procs())
            outside = [p for p in pids() if p not in inside]
            moved = False
            for p in outside:
                # a zombie of the tree cannot be moved (its write succeeds, without effect), nor one that ended: both need no freezing
                with contextlib.suppress(ProcessLookupError):
                    self.add(p)
                    moved |= p in self.procs()
            if not moved:
                return self.procs()

    def freeze(self, timeout: float = 5.0) -> None:
        """Stop all members where they are, unseen by parents and tracers; returns when all stand still.

        Raises ``TimeoutError`` (and leaves the group thawed) when one does not: a task in an uninterruptible wait.
        """
        self._write("cgroup.freeze", "1")
        try:
            self._wait("frozen", "1", timeout)
        except TimeoutError:
            self._write("cgroup.freeze", "0")
            raise

    def thaw(self, timeout: float = 5.0) -> None:
        """Let the members go on; returns when the group says so (an ancestor may still hold it: ``TimeoutError``)."""
        self._write("cgroup.freeze", "0")
        self._wait("frozen", "0", timeout)

    def is_frozen(self) -> bool:
        """Whether all members stand still by the freezer."""
        return self._events().get("frozen") == "1"

    def populated(self) -> bool:
        """Whether a live process is in it or below it."""
        return self._events().get("populated") == "1"

    def kill(self, timeout: float = 10.0) -> None:
        """SIGKILL all members, frozen ones and new-born too; returns when none is left (zombies may wait for their parents)."""
        self._write("cgroup.kill", "1")
        self._wait("populated", "0", timeout)

    def remove(self, timeout: float = 5.0) -> None:
        """Remove the empty group, and empty ones below; a missing one is fine.

        A dead member keeps the directory busy for a moment, so ``EBUSY`` is tried again; past ``timeout`` seconds it is raised.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                for d, _, _ in os.walk(self.path, topdown=False):
                    os.rmdir(d)
                return
            except FileNotFoundError:
                return
            except OSError as e:
                if e.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            time.sleep(0.002)

    def _write(self, name: str, value: str) -> None:
        fd = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def _events(self) -> dict[str, str]:
        return dict(line.split() for line in (self.path / "cgroup.events").read_text().splitlines())

    def _wait(self, key: str, value: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while self._events().get(key) != value:
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, f"cgroup {self.path}: {key} did not become {value} within {timeout:g} s")
            time.sleep(POLL)
