"""The agent's or keeper's side of its page source: start it, tell it what is hidden, start another when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any

from mig import spawn, wire
from mig.errors import MigError
from mig.tasks import Tasks
from mig.trust import links

log = logging.getLogger(__name__)

RESTARTS = 20
"""A helper that dies more often has a reason that another will have too."""
_FOLLOW_S = 2.0
"""Seconds between two looks whether this node has another address."""
Ranges = list[tuple[int, int]]


class SourceLost(MigError):
    """The memory of the frozen original cannot be read any more."""


class PageSource:
    """One page source and the listener that it serves.  ``addr``, ``port``, ``token``: what the destination's pager needs."""

    def __init__(self, addr: str, node: int = 0) -> None:
        """Start it on ``addr``; blocking for a moment.  ``node``: our id; should the pool see us elsewhere, it serves there."""
        self.token = os.urandom(32)
        self.addr, self.node = addr, node
        self._listener = self._listen(addr, 0)
        self.port = int(self._listener.getsockname()[1])
        self._layout: dict[str, Any] | None = None
        self._saved: dict[int, dict[int, bytes]] = {}
        self._fds: dict[int, tuple[int, int]] = {}  # mem and pagemap by index
        self._places: dict[int, int] = {}  # index by pid
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._all: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._restarts = 0
        self._asking = False
        self._closed = False
        self._tasks = Tasks()
        self._start()
        self._tasks.spawn(self._follow())

    @staticmethod
    def _listen(addr: str, port: int) -> socket.socket:
        return socket.create_server((addr, port), family=socket.AF_INET6 if ":" in addr else socket.AF_INET, backlog=16)

    async def _follow(self) -> None:
        """This node has another address: another helper serves there, on the same port."""
        while True:
            await asyncio.sleep(_FOLLOW_S)
            addr = links.addresses().of(self.node)
            if self._layout is None or addr in ("", self.addr):
                continue
            try:
                listener = self._listen(addr, self.port)
            except OSError as e:
                log.info("memory cannot be served on %s yet: %s", addr, e)
                continue
            self._listener.close()
            self._listener, self.addr = listener, addr
            self._process.kill()  # whoever reads from it notices, and starts the next

    def address(self) -> dict[str, Any]:
        """For the destination."""
        return {"addr": self.addr, "port": self.port, "token": self.token}

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._listener.fileno())
            self._process = spawn.start("mig.memory.source_main", *map(str, fds), fds=fds)
        wire.send(ours, token=self.token)  # a small message into an empty socket
        ours.setblocking(False)
        self._sock = ours
        self._tasks.spawn(self._read(ours))

    async def _read(self, sock: socket.socket) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                m = await wire.arecv(sock)
                match m.get("op"):
                    case "all" if not self._all.done():
                        self._all.set_result(m)
                    case "lost" if not self._all.done():
                        self._all.set_exception(SourceLost(str(m["why"])))
                    case "done" | "failed":
                        self._answers.put_nowait(m)
        if self._closed:
            return
        self._process.wait()
        log.warning("the page source ended with status %s", self._process.returncode)
        if self._asking:
            self._answers.put_nowait({"op": "failed", "error": "the page source ended"})
        self._restarts += 1
        if self._layout is None or self._restarts > RESTARTS:
            if not self._all.done():
                self._all.set_exception(SourceLost("the page source ended"))
            return
        sock.close()
        self._start()
        await self._send_layout()

    async def _ask(self, **m: Any) -> dict[str, Any]:
        await wire.asend(self._sock, **m)
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        self._asking = True
        try:
            answer = await self._answers.get()
        finally:
            self._asking = False
        if answer["op"] != "done":
            raise SourceLost(str(answer.get("error")))
        return answer

    async def rounds(
        self, processes: list[tuple[int, int, Ranges]], *, limit_bps: int, max_rounds: int, to_the_end: bool
    ) -> dict[str, Any]:
        """Pre-copy (index, pid, ranges); returns rounds, wire, bytes.  Raises :class:`SourceLost`."""
        return await self._ask(op="rounds", processes=processes, limit_bps=limit_bps, max_rounds=max_rounds, to_the_end=to_the_end)

    def open(self, pids: list[int]) -> dict[int, int]:
        """The processes stand frozen: hold on to their address spaces, whatever becomes of them.  Returns the index of each that lives."""
        for index, pid in enumerate(pids):
            try:
                mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                self._fds[index] = (mem, os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
                self._places[pid] = index
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
        return dict(self._places)

    async def layout(self, hidden: dict[int, Ranges]) -> None:
        """What is hidden of each process given to :meth:`open`; from now on it is served."""
        self._layout = {
            "processes": [(self._places[pid], ranges) for pid, ranges in hidden.items()],
            "pids": [(self._places[pid], pid) for pid in hidden],
        }
        await self._send_layout()

    async def _send_layout(self) -> None:
        assert self._layout is not None
        saved = {i: list(pages.items()) for i, pages in self._saved.items()}
        await wire.asend(self._sock, op="layout", saved=saved, **self._layout)
        fds = [fd for index, _ in self._layout["processes"] for fd in self._fds[index]]
        for at in range(0, len(fds), 32):
            socket.send_fds(self._sock, [b"x"], fds[at : at + 32])
        await self._answer()

    def read(self, index: int, addr: int, length: int) -> bytes:
        """Memory of one of the processes given to :meth:`open`; raises ``OSError``."""
        return os.pread(self._fds[index][0], length, addr)

    async def save(self, index: int, pages: dict[int, bytes]) -> None:
        """These pages are served with these contents, whatever happens to them in the memory."""
        self._saved.setdefault(index, {}).update(pages)
        await self._ask(op="saved", pages=[(index, a, p) for a, p in pages.items()])

    async def all(self) -> dict[str, Any]:
        """Wait until the destination has everything; returns bytes, zeros, faults.  Raises :class:`SourceLost`."""
        return await asyncio.shield(self._all)

    def close(self) -> None:
        """End it; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._tasks.cancel()
        self._sock.close()
        self._process.kill()
        self._process.wait()
        self._listener.close()
        for pair in self._fds.values():
            for fd in pair:
                os.close(fd)
        self._fds.clear()
        if self._all.done() and not self._all.cancelled():
            self._all.exception()  # nobody may have asked
