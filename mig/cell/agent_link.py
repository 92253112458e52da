"""A keeper's connection to the home agent of its guest: messages, and questions with their answers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Any

from mig import wire
from mig.criu.opened import opened
from mig.model import NodeInfo
from mig.trust import links

log = logging.getLogger(__name__)

ANSWER = 10.0
"""Seconds for an answer."""
_LOOKS, _MOST_LOOKS, _QUICK_NS = 5, 30, 2_000_000
"""Questions about home's clocks: at least, at most, and the nanoseconds for an answer that is exact enough."""


async def connect(home: NodeInfo, request: dict[str, Any], **hello: Any) -> socket.socket:
    """A connection to the agent that ``request`` (a prepare message) names; ``hello``: what it is for."""
    s = await links.connect(home.id, str(request["agent"][0]), int(request["agent"][1]), lasting=True)
    await wire.asend(s, token=request["token"], epoch=int(request["epoch"]), **hello)
    return s


class AgentLink:
    """Sending is safe from several tasks; one of them reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = asyncio.Lock()
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def tell(self, op: str, **m: Any) -> None:
        """Send one message; a lost agent is noticed by whoever reads from it."""
        try:
            async with self._lock:
                await wire.asend(self.sock, op=op, **m)
        except OSError as e:
            log.warning("the home agent does not hear %s: %s", op, e)

    async def ask(self, op: str, answer: str, **m: Any) -> dict[str, Any]:
        """Send a question, wait for the message named ``answer``; while :meth:`receive` is called by another task."""
        f: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[answer] = f
        await self.tell(op, **m)
        try:
            return await asyncio.wait_for(f, ANSWER)
        finally:
            self._answers.pop(answer, None)

    async def talk(self, op: str, **m: Any) -> dict[str, Any]:
        """The same while nobody reads: the next message is the answer."""
        await wire.asend(self.sock, op=op, **m)
        return await asyncio.wait_for(wire.arecv(self.sock), ANSWER)

    async def refused(self, img_dir: str | os.PathLike[str]) -> list[str]:
        """Files that these images would have CRIU open at home, and that the guest may not; while nobody reads."""
        files = (await self.talk("refused?", files=opened(img_dir)))["files"]
        return [f"{path}: a file that it may not open so" for path in files]

    async def compare_clocks(self) -> tuple[int, int]:
        """Nanoseconds by which home's monotonic and boot clocks are ahead of ours; while nobody reads.

        Of some answers the quickest is the most exact.  Errors of many moves add up in a guest's clock, so a busy node, where an answer
        takes long, is asked more often.
        """
        best, found = 1 << 62, (0, 0)
        for i in range(_MOST_LOOKS):
            if i >= _LOOKS and best < _QUICK_NS:
                break
            sent = time.monotonic_ns()
            m = await self.talk("clocks?")
            took = time.monotonic_ns() - sent
            if took < best:
                now = (time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
                best, found = took, (int(m["monotonic"]) + took // 2 - now[0], int(m["boottime"]) + took // 2 - now[1])
        return found

    async def receive(self) -> dict[str, Any]:
        """The next message that is no answer; raises ``EOFError`` or ``OSError`` when the agent is gone."""
        while True:
            m = await wire.arecv(self.sock)
            f = self._answers.get(str(m.get("op")))
            if f is None or f.done():
                return m
            f.set_result(m)

    def close(self) -> None:
        """End the connection; idempotent."""
        self.sock.close()
