"""The agent's connection to the keeper of the guest's present cell: signals and orders out, the guest's fate in."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from mig import wire


class KeeperLink:
    """One keeper (one epoch).  Messages that it sends are read with :meth:`receive`; sending is safe from several tasks."""

    def __init__(self, sock: socket.socket, epoch: int) -> None:
        self.sock, self.epoch = sock, epoch
        self._lock = asyncio.Lock()

    async def send(self, op: str, **m: Any) -> None:
        """Send one message; raises ``OSError`` when the keeper is gone."""
        async with self._lock:
            await wire.asend(self.sock, op=op, **m)

    async def receive(self) -> dict[str, Any]:
        """The next message; raises ``EOFError`` or ``OSError`` when the keeper is gone."""
        return await wire.arecv(self.sock)

    def close(self) -> None:
        """End the connection; idempotent."""
        self.sock.close()
