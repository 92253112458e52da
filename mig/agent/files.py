"""The file server of one guest: a child process of the home agent, spoken to over a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any

from mig import spawn, wire
from mig.errors import MigError
from mig.homefs.guest import Guest

log = logging.getLogger(__name__)

START = 30.0
"""Seconds for the server to say its port: it imports Python modules on a machine that may be busy, which is why its process is to leave."""
ANSWER = 10.0
"""Seconds that a question may take."""


class FileServer:
    """Starts ``mig.agent.fileserver`` and asks it things; ``port`` is where the guest's host connects."""

    def __init__(self, proc: spawn.Process, control: socket.socket, addr: str, port: int) -> None:
        self.proc, self.control, self.addr, self.port = proc, control, addr, port
        self._lock = asyncio.Lock()
        self._exchange: asyncio.Task[dict[str, Any]] | None = None

    @classmethod
    async def start(cls, addr: str, token: bytes, groups: dict[int, list[int]], guest: Guest) -> FileServer:
        """Spawn the server on ``addr`` (any port); clients must begin with ``token``.  ``groups``: supplementary groups by uid.
        ``guest``: in whose name it serves."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        token_r, token_w = os.pipe()
        os.write(token_w, token)
        os.close(token_w)
        ours.setblocking(False)
        try:
            fds = [token_r, theirs.fileno()]
            proc = spawn.start("mig.agent.fileserver", "--listen", addr, "--token-fd", str(fds[0]), "--control-fd", str(fds[1]), fds=fds)
        finally:
            os.close(token_r)
            theirs.close()
        try:
            hello = await asyncio.wait_for(wire.arecv(ours), START)
        except (EOFError, TimeoutError) as e:
            proc.kill()
            raise MigError("the file server of the guest did not start", hint="its words are in the agent's log under /run/mig/log") from e
        server = cls(proc, ours, addr, int(hello["port"]))
        await server.ask("guest", guest=guest.to_map())
        if groups:
            await server.ask("groups", groups=groups)
        return server

    async def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """One question, one answer.  Raises ``TimeoutError``, ``OSError``, ``EOFError``.

        Whoever gives up waiting takes only himself away: the answer is read all the same, or the next question would get it.
        """
        async with self._lock:
            if self._exchange is not None and not self._exchange.done():
                await asyncio.wait({self._exchange}, timeout=ANSWER)
                if not self._exchange.done():
                    raise TimeoutError("the guest's file server does not answer")
            self._exchange = asyncio.create_task(self._question(op, args))
            self._exchange.add_done_callback(lambda t: t.cancelled() or t.exception())
            return await asyncio.wait_for(asyncio.shield(self._exchange), ANSWER)

    async def _question(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        await wire.asend(self.control, op=op, **args)
        return await wire.arecv(self.control)

    async def move(self, addr: str) -> None:
        """Home has another address: serve there.  Raises ``OSError`` when it cannot, and as :meth:`ask`."""
        if "error" in (answer := await self.ask("listen", addr=addr)):
            raise OSError(answer["error"].get("message", "it cannot listen there"))
        self.addr = addr

    async def unlock(self) -> None:
        """Let go of all locks that the guest holds: its next copy takes them anew."""
        for name in (await self.ask("mounts"))["mounts"]:
            await self.ask("unlock", mount=name)

    async def relock(self) -> None:
        """The move was given up: take them again, from the copy as well."""
        await self.ask("given up")
        for name in (await self.ask("mounts"))["mounts"]:
            if lost := (await self.ask("relock", mount=name))["lost"]:
                log.error("%d lock(s) were taken by others while the guest stood frozen; it runs on without them", lost)

    async def stop(self) -> None:
        """End it; idempotent."""
        with contextlib.suppress(OSError):  # it has ended already
            self.control.shutdown(socket.SHUT_RDWR)
        if self._exchange is not None and not self._exchange.done():
            await asyncio.wait({self._exchange}, timeout=1)  # whoever waits for an answer hears of the end
        self.control.close()
        self.proc.terminate()
        if self.proc.returncode is None:  # it had not ended by itself, which it does without its control socket
            try:
                await asyncio.wait_for(spawn.ended(self.proc.pid), 3)
            except TimeoutError:
                self.proc.kill()
            self.proc.wait()
