"""The keeper's side of its pager: start it, give it the layout, hear what becomes of the guest's memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mig import spawn, wire
from mig.errors import MigError
from mig.kernel import libc, procfs
from mig.tasks import Tasks

log = logging.getLogger(__name__)

SOCKET = "lazy-pages.socket"
"""CRIU's name for it, in the directory of the images."""
REPLACEMENTS = 20
"""Pagers that may die before the guest is given up: one that dies again and again has a reason."""
_START = 15.0
SILENT = 2.0
"""Seconds without a word from the source that are worth telling; a busy machine takes a fraction of one."""


class PagerLink:
    """One pager.  ``whole`` is set when all memory is on this node, if not in its place: the source is not needed any more; ``arrived``
    when all is in its place.  ``missing``: bytes that are on their way; ``silent``: seconds for which the source has not said anything,
    0 while it is well; ``report``: figures of the transfer, for an event."""

    def __init__(self, first: dict[str, Any]) -> None:
        """Start the process; ``first``: what it is told first."""
        self._first = first
        self._log = -1
        self._processes: list[Any] = []
        self._pushing = False
        self._replaced = 0
        self._reader: asyncio.Future[None] | None = None
        self.arrived, self.whole = asyncio.Event(), asyncio.Event()
        self.missing = 0
        self.silent = 0.0
        self.report: dict[str, Any] = {}
        self._restored: asyncio.Event = asyncio.Event()
        self._laid_out: asyncio.Event = asyncio.Event()
        self._tasks = Tasks()
        self.guardians: list[int] = []
        self._held: list[int] = []
        self._spawn()

    @classmethod
    def start(cls, source: dict[str, Any], images: Path, cell: Path) -> PagerLink:
        """Start it and wait until it is connected to the page source; blocking.  ``source``: node (its id), addr, port, token.

        Raises :class:`MigError` when it is not; then the move can do without.
        """
        where = {"node": int(source["node"]), "addr": str(source["addr"]), "port": int(source["port"]), "token": bytes(source["token"])}
        first = {"socket": str(images / SOCKET), "cell": str(cell), "keeper": os.getpid(), **where}
        link = cls(first)
        try:
            link._sock.settimeout(_START)
            wire.send(link._sock, **first)
            link._connected(wire.recv(link._sock))
        except (OSError, EOFError) as e:
            link.close()
            raise MigError(f"the pager did not start: {e}") from e
        except MigError:
            link.close()
            raise
        link._sock.setblocking(False)
        return link

    def _spawn(self) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = spawn.start("mig.memory.pager_main", str(theirs.fileno()), fds=[theirs.fileno()])

    def _connected(self, answer: dict[str, Any]) -> None:
        if answer["op"] != "connected":
            raise MigError(f"the page source cannot be reached: {answer.get('error')}")
        self.guardians, self._log = [int(p) for p in answer["guardians"]], int(answer["log"])

    async def _replace(self) -> None:
        """Start another pager, which takes over from a guardian of the one that died.  Raises :class:`MigError`, ``OSError``."""
        old = self.guardians
        guardian = next((p for p in old if procfs.state(p) not in (None, "Z", "X")), old[0])
        adopt = {
            "guardian": guardian,
            "log": self._log,
            "processes": self._processes,
            "pushing": self._pushing,
            "whole": self.whole.is_set(),
        }
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._sock.close()
        self._spawn()
        self._sock.setblocking(False)
        await wire.asend(self._sock, **self._first, adopt=adopt)
        self._connected(await asyncio.wait_for(wire.arecv(self._sock), _START))
        _end(old)  # the new one has every descriptor by now
        log.warning("the pager died; another has taken over")

    async def layout(self, processes: list[Any], lost: Callable[[str], None], changed: Callable[[], None]) -> None:
        """Tell what will be missing; from now on ``lost`` is called, once, when it can never arrive, ``changed`` with news of it."""
        self._processes = processes
        self._reader = self._tasks.spawn(self._read(lost, changed))
        self._tasks.spawn(self._watch(lost, changed))
        await wire.asend(self._sock, op="layout", processes=processes)
        await asyncio.wait_for(self._laid_out.wait(), 10)

    async def restored(self) -> None:
        """Wait until every process's userfaultfd is in safe hands; a moment after the restore has reached its end."""
        await asyncio.wait_for(self._restored.wait(), 10)

    async def push(self) -> None:
        """The guest runs: all of its memory is wanted now."""
        self._pushing = True
        await wire.asend(self._sock, op="push")

    async def _read(self, lost: Callable[[str], None], changed: Callable[[], None]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                m = await wire.arecv(self._sock)
                match m.get("op"):
                    case "laid-out":
                        self._laid_out.set()
                    case "restored":
                        self._hold()
                        self._restored.set()
                    case "forked":
                        self._hold()
                    case "missing":
                        self.missing, silent = int(m["bytes"]), float(m["silent"])
                        self.silent = silent if silent >= SILENT else 0.0
                        changed()
                    case "whole":
                        self._all_here(m, changed)
                        await wire.asend(self._sock, op="whole")
                    case "guardians":
                        self.guardians = [int(p) for p in m["pids"]]
                    case "lost":
                        lost(str(m["why"]))
                    case "placed":
                        self._let_go()
                        await wire.asend(self._sock, op="placed")
                    case "all":
                        log.info("all memory is in its place: %s", m)
                        self.arrived.set()
                        self._all_here(m, changed)

    def _all_here(self, m: dict[str, Any], changed: Callable[[], None]) -> None:
        self.missing, self.silent = 0, 0.0
        self.report = self.report or {k: v for k, v in m.items() if k != "op"}
        self.whole.set()
        changed()

    def _hold(self) -> bool:
        """Duplicates of every userfaultfd that the guest has now: should the pager and all guardians die in the same instant, its threads
        wait for what has not come until the guest is ended.  False: there is no guardian to have them of."""
        found = next((fds for p in self.guardians if (fds := _userfaultfds(p))), [])
        if found:
            self._let_go()
            self._held = found
        return bool(found)

    def _let_go(self) -> None:
        """Everything is in its place, or nobody is left: a userfaultfd that somebody holds and nobody reads would stop the guest."""
        held, self._held = self._held, []
        for fd in held:
            os.close(fd)

    async def _watch(self, lost: Callable[[str], None], changed: Callable[[], None]) -> None:
        """A pager that dies with pages missing is replaced, a guardian too; threads that need a page wait meanwhile."""
        while True:
            await spawn.ended(self._process.pid)
            guarded = self._hold()  # at once: the guardians may die as well
            await asyncio.sleep(0.02)  # its last words
            if self.arrived.is_set():
                return
            self._process.wait()
            self._replaced += 1
            why = "its pager died while memory was missing" + ("" if guarded else ", and every guardian with it")
            if guarded and self._restored.is_set() and self._replaced <= REPLACEMENTS:
                try:
                    await self._replace()
                    self._hold()
                    why = ""
                except (MigError, OSError, EOFError, TimeoutError) as e:
                    why = f"its pager died, and no other could take over: {e or type(e).__name__}"
            if why:
                lost(why)  # what we hold stays until the guest has ended
                return
            self._reader = self._tasks.spawn(self._read(lost, changed))

    async def end(self) -> None:
        """The guest has ended, or will never run: the source may forget its memory.  The cell must have been killed."""
        with contextlib.suppress(OSError):
            await wire.asend(self._sock, op="end")

    def close(self) -> None:
        """End the pager; nothing of the cell may be left.  Idempotent."""
        self._tasks.cancel()
        with contextlib.suppress(OSError):
            self._sock.setblocking(True)
            wire.send(self._sock, op="end")
        self._sock.close()
        try:
            self._process.wait(6)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _end(self.guardians)
        self._let_go()


def _end(guardians: list[int]) -> None:
    """End guardians that have served; one is ours only while it bears the name."""
    for pid in guardians:
        with contextlib.suppress(ProcessLookupError):
            if procfs.comm(pid) == "mig-guardian":
                os.kill(pid, signal.SIGKILL)


def _userfaultfds(guardian: int) -> list[int]:
    """Duplicates of every userfaultfd that it holds; empty when it is gone."""
    held = []
    try:
        for fd in os.listdir(f"/proc/{guardian}/fd"):
            if "userfaultfd" in os.readlink(f"/proc/{guardian}/fd/{fd}"):
                held.append(libc.pidfd_getfd(guardian, int(fd)))
    except OSError:
        pass  # it has just died: what we have is all
    return held
