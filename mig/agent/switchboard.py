"""Where keepers connect to: the agent's TCP listener, and the connections that have arrived, by epoch.

An epoch is one stay of the guest in one cell; the cell of the next host connects while the guest still runs in the old one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import Callable

from mig import wire
from mig.agent.keeper_link import KeeperLink
from mig.tasks import Tasks

log = logging.getLogger(__name__)


class Switchboard:
    """Accepts connections that prove the cluster key and bring this guest's token."""

    def __init__(self, key: bytes, token: bytes, on_keeper: Callable[[KeeperLink], None]) -> None:
        self.key, self.token, self.on_keeper = key, token, on_keeper
        self.addr, self.port = "", 0
        self._channels: dict[tuple[int, int], socket.socket] = {}
        self._keepers: set[int] = set()
        self._arrived = asyncio.Condition()
        self._tasks = Tasks()
        self._listener: socket.socket | None = None

    async def start(self, addr: str) -> None:
        """Listen on ``addr``, any port."""
        family = socket.AF_INET6 if ":" in addr else socket.AF_INET
        s = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        s.bind((addr, 0))
        s.listen(64)
        self._listener = s
        self.addr, self.port = addr, s.getsockname()[1]
        self._tasks.spawn(self._accept(s))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            s, _ = await loop.sock_accept(listener)
            self._tasks.spawn(self._hello(s))

    async def _hello(self, s: socket.socket) -> None:
        s.setblocking(False)
        try:
            wire.tune(s)
            await wire.prove(s, self.key, server=True)
            m = await asyncio.wait_for(wire.arecv(s), 5)
            token, epoch = m.get("token"), int(m.get("epoch", 0))
            if not isinstance(token, bytes) or not hmac.compare_digest(token, self.token):
                raise wire.WireError("wrong token")
        except (OSError, EOFError, TimeoutError, ValueError) as e:
            log.warning("a connection was turned away: %s", e)
            s.close()
            return
        async with self._arrived:
            if m.get("kind") == "keeper":
                self._keepers.add(epoch)
                self.on_keeper(KeeperLink(s, epoch))
            else:
                self._channels[epoch, int(m.get("id", -1))] = s
            self._arrived.notify_all()

    async def wait_for(self, epoch: int, ids: list[int], timeout: float = 10.0) -> None:
        """Wait until the keeper and the channels ``ids`` of ``epoch`` have connected; raises ``TimeoutError``."""
        async with self._arrived:
            await asyncio.wait_for(
                self._arrived.wait_for(lambda: epoch in self._keepers and all((epoch, i) in self._channels for i in ids)), timeout
            )

    def take(self, epoch: int, external: int) -> socket.socket | None:
        """The connection of one channel, now the caller's; None when that cell has no proxy for it."""
        return self._channels.pop((epoch, external), None)

    def drop(self, epoch: int) -> None:
        """Close the channel connections of a cell that never came to run."""
        for k in [k for k in self._channels if k[0] == epoch]:
            self._channels.pop(k).close()
        self._keepers.discard(epoch)

    def close(self) -> None:
        """Stop listening and close what nobody took."""
        self._tasks.cancel()
        if self._listener is not None:
            self._listener.close()
        for s in self._channels.values():
            s.close()
        self._channels.clear()
