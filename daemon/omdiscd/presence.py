"""What is seen of the people at this machine: their sessions, when they last touched it, what their own processes do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from mig import paths
from mig.adaptive import sessions as parse
from mig.adaptive.sessions import Session
from mig.kernel import procfs
from mig.tasks import beat
from omdiscd.procscan import ProcessTable

log = logging.getLogger(__name__)

UTMP = (Path("/run/utmp"), Path("/var/run/utmp"))
LOGIND = Path("/run/systemd/sessions")
RECONCILE = 5.0
"""Seconds between two looks at utmp and logind: they only find what PAM's notes miss."""
_MAX_NOTE = 4096
_MAX_UTMP = 4 << 20
_FIRST_USER = 1000
"""Below are accounts of the system, behind which there is nobody."""
_HINT_TIMEOUT = 5.0
_BUSY = 0.05
"""Runnable threads below which a process is not asked for its owner."""


class Presence:
    """Looks when asked.  ``not_theirs``: pids of guests, of our helpers and of managed jobs, with all below them."""

    def __init__(self, table: ProcessTable, not_theirs: Callable[[], set[int]]) -> None:
        self.table, self.not_theirs = table, not_theirs
        self.hints: dict[str, float] = {}
        """By logind's id of a graphical session: boot time at which it was last in use, as its desktop tells."""
        self._others: tuple[list[Session], list[Session]] = ([], [])
        self._reconciled = -math.inf
        self._known: frozenset[int] = frozenset()
        self._changed = -math.inf

    def sessions(self) -> tuple[Session, ...]:
        """Every session whose process lives; notes of dead ones are removed."""
        now = time.monotonic()
        if now - self._reconciled >= RECONCILE:
            self._reconciled = now
            self._others = _utmp(), _logind()
        found = [[s for s in source if procfs.state(s.pid) not in (None, "Z", "X")] for source in (_notes(), *self._others)]
        ancestors = {s.pid: _ancestors(s.pid) for source in found for s in source}
        merged = tuple(parse.merge(found, ancestors))
        pids = frozenset(s.pid for s in merged)
        if pids != self._known:
            self._known, self._changed = pids, time.clock_gettime(time.CLOCK_BOOTTIME)
        return merged

    def idle_s(self, sessions: tuple[Session, ...]) -> float:
        """Seconds since somebody touched a terminal or display here, logged in or out; inf when that was never seen."""
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        touched = [self._changed, *(s.since for s in sessions), *(self.hints.get(s.ident, -math.inf) for s in sessions)]
        wall = time.time()
        touched += [boot - max(0.0, wall - t) for t in _terminals()]
        return max(0.0, boot - max(touched))

    def owner_load(self) -> float:
        """Runnable threads of people's own processes."""
        excluded = self.not_theirs()
        return sum(p.runnable for p in self.table.processes.values() if p.runnable > _BUSY and p.pid not in excluded and _is_persons(p.pid))

    async def watch_hints(self, wanted: Callable[[], bool]) -> None:
        """Ask logind for the idle hints of graphical sessions, which have no terminal that would tell."""
        while True:
            await beat(RECONCILE)
            if not wanted():
                continue
            for s in self._others[1]:
                if s.ident and not s.tty.startswith("pts/"):
                    with contextlib.suppress(OSError, ValueError, TimeoutError):
                        self.hints[s.ident] = await _hint(s.ident)


def _notes() -> list[Session]:
    out = []
    for f in paths.LOGINS.iterdir() if paths.LOGINS.is_dir() else ():
        if not f.name.isdigit():
            continue
        try:
            fd = os.open(f, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                st = os.fstat(fd)
                text = os.read(fd, _MAX_NOTE).decode(errors="replace")
            finally:
                os.close(fd)
            if st.st_uid != 0 or st.st_size >= _MAX_NOTE:
                raise ValueError("it is not root's, or too long")
            s = parse.note(int(f.name), text)
            if procfs.stat(s.pid).start == s.start and procfs.state(s.pid) not in (None, "Z", "X"):
                out.append(s)
                continue
            log.info("the session of %s ended without a word: its process %d is gone", s.words(), s.pid)
        except FileNotFoundError:
            continue  # closed in this moment
        except ProcessLookupError:
            log.info("a session ended without a word: its process %s is gone", f.name)
        except (OSError, ValueError) as e:
            log.warning("%s is no note of mospam and is removed: %s", f, e)
        with contextlib.suppress(OSError):
            f.unlink()
    return out


def _utmp() -> list[Session]:
    for f in UTMP:
        try:
            with open(f, "rb") as file:
                return parse.utmp(file.read(_MAX_UTMP), boot=time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))
        except OSError:
            continue  # newer systems have none
    return []


def _logind() -> list[Session]:
    out = []
    with contextlib.suppress(OSError):
        for f in LOGIND.iterdir():
            if f.name.isalnum() and (s := parse.logind(f.name, f.read_text(errors="replace"))):
                out.append(s)
    return out


async def _hint(ident: str) -> float:
    """Boot time at which the session was last in use."""
    properties = ("-p", "IdleHint", "-p", "IdleSinceHintMonotonic")
    p = await asyncio.create_subprocess_exec(
        "loginctl", "show-session", ident, *properties, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(p.communicate(), _HINT_TIMEOUT)
    except TimeoutError:
        p.kill()
        await p.wait()
        raise
    f = dict(line.partition("=")[::2] for line in out.decode(errors="replace").splitlines())
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    if f.get("IdleHint") != "yes":
        return now
    return now - (time.monotonic() - int(f["IdleSinceHintMonotonic"]) / 1e6)


def _terminals() -> list[float]:
    """Wall times at which input of each terminal was last read.  The kernel notes it every 8 s."""
    out = []
    candidates = [*Path("/dev/pts").glob("[0-9]*"), *Path("/dev").glob("tty[1-9]*")]
    for tty in candidates:
        with contextlib.suppress(OSError):
            out.append(tty.stat().st_atime)
    return out


def _ancestors(pid: int) -> list[int]:
    out: list[int] = []
    with contextlib.suppress(ProcessLookupError):
        while (pid := procfs.stat(pid).ppid) > 0 and pid not in out:
            out.append(pid)
    return out


def _is_persons(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid >= _FIRST_USER
    except OSError:
        return False
