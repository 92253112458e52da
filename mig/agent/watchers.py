"""The unix socket on which omdiscd (or anybody of root) watches an agent or a keeper and gives it orders.

Wire frames.  ``watch`` subscribes to ``state`` and ``event`` messages; every other message goes to the owner's ``order`` callback, whose
messages go back to the client that gave the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mig import wire
from mig.model import GuestState
from mig.tasks import Tasks

log = logging.getLogger(__name__)

Reply = Callable[[dict[str, Any]], Awaitable[None]]
Order = Callable[[dict[str, Any], Reply], Awaitable[None]]


class Watchers:
    """Serves ``path`` until :meth:`close`; ``state`` is called for the current row whenever one is due."""

    def __init__(self, path: Path, state: Callable[[], GuestState], order: Order) -> None:
        self.path, self.state, self.order = path, state, order
        self._watching: set[socket.socket] = set()
        self._tasks = Tasks()
        self._locks: dict[socket.socket, asyncio.Lock] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def start(self) -> None:
        """Bind, replacing what a dead predecessor left, and accept; only root may connect."""
        self.path.unlink(missing_ok=True)
        old = os.umask(0o077)
        try:
            self._listener.bind(str(self.path))
        finally:
            os.umask(old)
        self._listener.listen(8)
        self._tasks.spawn(self._accept())
        self._tasks.spawn(self._tick())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            s, _ = await loop.sock_accept(self._listener)
            self._locks[s] = asyncio.Lock()
            self._tasks.spawn(self._client(s))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            await self.changed()

    async def _send(self, s: socket.socket, m: dict[str, Any]) -> None:
        try:
            async with self._locks[s]:
                await asyncio.wait_for(wire.asend(s, **m), 5)
        except (OSError, TimeoutError, KeyError):
            self._watching.discard(s)  # it went away or does not read; its reader task ends it

    async def _client(self, s: socket.socket) -> None:
        try:
            while True:
                m = await wire.arecv(s)
                if m.get("op") == "watch":
                    self._watching.add(s)
                    await self._send(s, {"op": "state", "state": dataclasses.asdict(self.state())})
                else:
                    self._tasks.spawn(self._order(m, s))
        except (EOFError, OSError):
            pass
        finally:
            self._watching.discard(s)
            self._locks.pop(s, None)
            s.close()

    async def _order(self, m: dict[str, Any], s: socket.socket) -> None:
        async def reply(answer: dict[str, Any]) -> None:
            await self._send(s, answer)

        try:
            await self.order(m, reply)
        except Exception:
            log.exception("order %s failed", m.get("op"))
            await reply({"op": "failed", "id": m.get("id")})

    async def changed(self) -> None:
        """Send the current state to all who watch."""
        m = {"op": "state", "state": dataclasses.asdict(self.state())}
        for s in list(self._watching):
            await self._send(s, m)

    async def event(self, **event: Any) -> None:
        """Send an event to all who watch."""
        await self.tell(op="event", event=event)

    async def tell(self, **m: Any) -> None:
        """Send a message to all who watch."""
        for s in list(self._watching):
            await self._send(s, m)

    def close(self) -> None:
        """Stop serving and remove the socket."""
        self.path.unlink(missing_ok=True)
        self._tasks.cancel()
        for s in list(self._locks):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)  # what is queued still goes out
        self._listener.close()
