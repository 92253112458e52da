"""The keeper's side of its pager: start it, give it the layout, hear what becomes of the guest's memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mig import wire
from mig.errors import MigError
from mig.tasks import Tasks

log = logging.getLogger(__name__)

SOCKET = "lazy-pages.socket"
"""CRIU's name for it, in the directory of the images."""
_START = 15.0


class PagerLink:
    """One pager.  ``arrived`` is set when nothing is missing any more; ``missing``: bytes that are."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process, self._sock = process, sock
        self.arrived = asyncio.Event()
        self.missing = 0
        self.report: dict[str, Any] = {}
        self._restored: asyncio.Event = asyncio.Event()
        self._laid_out: asyncio.Event = asyncio.Event()
        self._tasks = Tasks()
        self.guardian = 0

    @classmethod
    def start(cls, source: dict[str, Any], images: Path, cell: Path) -> PagerLink:
        """Start it and wait until it is connected to the page source; blocking.  ``source``: addr, port, token.

        Raises :class:`MigError` when it is not; then the move can do without.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "mig.memory.pager_main", str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        link = cls(process, ours)
        ours.settimeout(_START)
        try:
            where = {"addr": str(source["addr"]), "port": int(source["port"]), "token": bytes(source["token"])}
            wire.send(ours, socket=str(images / SOCKET), cell=str(cell), keeper=os.getpid(), **where)
            answer = wire.recv(ours)
        except (OSError, EOFError, KeyError, ValueError) as e:
            link.close()
            raise MigError(f"the pager did not start: {e}") from e
        if answer["op"] != "connected":
            link.close()
            raise MigError(f"the page source cannot be reached: {answer.get('error')}")
        link.guardian = int(answer["guardian"])
        ours.setblocking(False)
        return link

    async def layout(self, processes: list[Any], lost: Callable[[str], None], changed: Callable[[], None]) -> None:
        """Tell what will be missing; from now on ``lost`` is called, once, when it can never arrive, ``changed`` with news of it."""
        self._tasks.spawn(self._read(lost, changed))
        self._tasks.spawn(self._watch(lost))
        await wire.asend(self._sock, op="layout", processes=processes)
        await asyncio.wait_for(self._laid_out.wait(), 10)

    async def restored(self) -> None:
        """Wait until every process's userfaultfd is in safe hands; a moment after the restore has reached its end."""
        await asyncio.wait_for(self._restored.wait(), 10)

    async def push(self) -> None:
        """The guest runs: all of its memory is wanted now."""
        await wire.asend(self._sock, op="push")

    async def _read(self, lost: Callable[[str], None], changed: Callable[[], None]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                m = await wire.arecv(self._sock)
                match m.get("op"):
                    case "laid-out":
                        self._laid_out.set()
                    case "restored":
                        self._restored.set()
                    case "missing" | "waiting":
                        self.missing = int(m["bytes"])
                        self.report["waiting"] = m["op"] == "waiting"
                        changed()
                    case "lost":
                        lost(str(m["why"]))
                    case "all":
                        log.info("all memory is here: %s", m)
                        self.missing = 0
                        self.report = {k: v for k, v in m.items() if k != "op"}
                        self.arrived.set()
                        changed()

    async def _watch(self, lost: Callable[[str], None]) -> None:
        """A pager that dies with pages missing."""
        loop = asyncio.get_running_loop()
        fd = os.pidfd_open(self._process.pid)
        try:
            gone = asyncio.Event()
            loop.add_reader(fd, gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(fd)
        finally:
            os.close(fd)
        await asyncio.sleep(0.05)  # its last words
        if not self.arrived.is_set():
            lost("its pager died while memory was missing")

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
        if self.guardian:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(self.guardian) == os.getpgid(0):
                    os.kill(self.guardian, signal.SIGKILL)
