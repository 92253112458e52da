"""Who the guest is to home: as whom a request of its host is done, and which files it holds though it could not open them by itself.

The host's kernel says under which user id something is asked.  The guest's own ids are believed; user 0 is the host's own work for it (its
mounts, CRIU which opens the guest's files again as root) and is done as the guest; any other id is none of the guest's.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mig.kernel import pidfd, procfs
from mig.model import ProcessId

log = logging.getLogger(__name__)

READS, WRITES, RUNS, CHANGES = 1, 2, 4, 8
"""What is done with a file.  RUNS: it is the program; CHANGES: something of this name is made in its directory, and removed."""
Key = tuple[int, int]
"""st_dev, st_ino"""
NOBODY = 65534
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Guest:
    """The ids that the guest's processes have, saved and supplementary ones too: an unprivileged process gets no others.

    ``privileged``: it has root's id or a capability, so it may become anybody.
    """

    uid: int = NOBODY
    gid: int = NOBODY
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    privileged: bool = False

    @classmethod
    def of(cls, root: int, pids: Iterable[int]) -> Guest:
        """Of the processes ``pids`` as the kernel tells; those that have ended do not count.  ``root`` is the first of them."""
        me, uids, gids, privileged = procfs.status(root), set[int](), set[int](), False
        for p in pids:
            try:
                s = procfs.status(p)
            except ProcessLookupError:
                continue
            uids.update(s.uids)
            gids.update(s.gids, s.groups)
            privileged = privileged or any(int(s.fields.get(c, "0"), 16) for c in _CAPABILITIES)
        return cls(me.uids[3], me.gids[3], frozenset(uids), frozenset(gids), privileged or 0 in uids)

    @classmethod
    def from_map(cls, m: dict[str, Any]) -> Guest:
        """As :meth:`to_map` made it."""
        return cls(int(m["uid"]), int(m["gid"]), frozenset(m["uids"]), frozenset(m["gids"]), bool(m["privileged"]))

    def to_map(self) -> dict[str, Any]:
        """For a message."""
        return {"uid": self.uid, "gid": self.gid, "uids": sorted(self.uids), "gids": sorted(self.gids), "privileged": self.privileged}

    def act_as(self, uid: int, gid: int) -> tuple[int, int] | None:
        """As whom a request in the name of these ids is done; None when it is refused."""
        if self.privileged or (uid in self.uids and gid in self.gids):
            return uid, gid
        return (self.uid, self.gid) if uid == 0 else None


@dataclass
class Holdings:
    """Files that somebody holds: how they are open (0: only as a working directory), and the directories on the way to them."""

    open: dict[Key, int] = field(default_factory=dict)
    ways: set[Key] = field(default_factory=set)

    def hold(self, key: Key, access: int) -> None:
        """One more."""
        self.open[key] = self.open.get(key, 0) | access


class Held:
    """What the frozen original holds (descriptors, mappings, program, working directory): CRIU opens it again on the host by name, which
    the guest itself may not be able to any more.  Looked up when it is first needed, by a thread that keeps root's privileges."""

    def __init__(self) -> None:
        self._originals: list[ProcessId] = []
        self._holdings: Holdings | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="held", daemon=True).start()

    def of(self, pids: Iterable[int]) -> None:
        """From now on it is about these frozen processes; of none: what is known stays."""
        originals = []
        for p in pids:
            try:
                originals.append(pidfd.identity(p))
            except ProcessLookupError:
                continue
        if originals:
            self._originals, self._holdings = originals, None

    def holdings(self) -> Holdings:
        """What they hold."""
        if self._holdings is None and self._originals:
            done = threading.Event()

            def look() -> None:
                if self._holdings is None:
                    self._holdings = scan(p.pid for p in self._originals if pidfd.still(p))
                done.set()

            self._jobs.put(look)
            done.wait(PATIENCE_S)
        return self._holdings or Holdings()

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)

    def _work(self) -> None:
        while job := self._jobs.get():
            job()


def scan(pids: Iterable[int]) -> Holdings:
    """Everything that these processes hold, by /proc; needs root's privileges."""
    out = Holdings()
    seen: set[str] = set()
    for p in pids:
        links = [(f"/proc/{p}/{name}", False) for name in ("cwd", "root", "exe")]
        for directory in (f"/proc/{p}/fd", f"/proc/{p}/map_files"):
            try:
                links += [(f"{directory}/{name}", True) for name in os.listdir(directory)]
            except OSError as e:
                log.info("%s: %s", directory, e)
        for link, has_mode in links:
            try:
                st, mode, target = os.stat(link), os.lstat(link).st_mode, os.readlink(link)
            except OSError:
                continue  # unmapped or ended meanwhile
            access = (READS if mode & 0o400 else 0) | (WRITES if mode & 0o200 else 0) if has_mode else READS * link.endswith("/exe")
            out.hold((st.st_dev, st.st_ino), access)
            while target.startswith("/") and (target := os.path.dirname(target)) not in seen:
                seen.add(target)
                try:
                    st = os.lstat(target)
                except OSError:
                    continue
                out.ways.add((st.st_dev, st.st_ino))
    return out
