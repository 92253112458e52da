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
from mig.trust import links
from mig.trust.strangers import Strangers

log = logging.getLogger(__name__)


class Switchboard:
    """Accepts connections of nodes of the pool that bring this guest's token; those of an epoch from the node that was chosen for it."""

    def __init__(self, token: bytes, on_keeper: Callable[[KeeperLink], None]) -> None:
        self.token, self.on_keeper = token, on_keeper
        self.hosts: dict[int, int] = {}
        """The node, by its id, on which the cell of an epoch is."""
        self.addr, self.port = "", 0
        self._channels: dict[tuple[int, int], socket.socket] = {}
        self._keepers: set[int] = set()
        self._arrived = asyncio.Condition()
        self._tasks = Tasks()
        self._strangers = Strangers()
        self._accepting: asyncio.Future[None] | None = None

    def listen(self, addr: str) -> None:
        """Listen on ``addr``: on any port, or when we listened elsewhere before (home had another address) on the same, and no more there.

        Raises ``OSError``.
        """
        family = socket.AF_INET6 if ":" in addr else socket.AF_INET
        s = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            s.bind((addr, self.port))
            s.listen(64)
        except OSError:
            s.close()
            raise
        if self._accepting is not None:
            self._accepting.cancel()
        self.addr, self.port = addr, s.getsockname()[1]
        self._accepting = self._tasks.spawn(self._accept(s))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                s, source = await loop.sock_accept(listener)
                self._tasks.spawn(self._hello(s, str(source[0])))

    async def _hello(self, conn: socket.socket, source: str) -> None:
        try:
            s, peer = await links.accept(conn)
        except links.Resumed:
            log.info("%s goes on with a connection that it had", source)
            return
        except (OSError, TimeoutError) as e:
            self._strangers.say(log, source, f"connections are turned away: {e or 'no greeting in time'}")
            return
        try:
            m = await asyncio.wait_for(wire.arecv(s), 5)
            token, epoch = m.get("token"), int(m.get("epoch", 0))
            if not isinstance(token, bytes) or not hmac.compare_digest(token, self.token):
                raise wire.WireError("wrong token")
            if peer.id != self.hosts.get(epoch):
                raise wire.WireError(f"{peer.name} is not where the guest's cell {epoch} is")
        except (OSError, EOFError, TimeoutError, ValueError) as e:
            self._strangers.say(log, source, f"connections are turned away: {e or 'no greeting in time'}")
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
        for s in self._channels.values():
            s.close()
        self._channels.clear()
