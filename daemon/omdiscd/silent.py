"""Clients of the control socket that make no request: they say nothing, half a message, or one that is too long.

libzmq never tells of a message that is not complete, but of connections: that one came, and that it went or was sent away.  Each that is
there, or was there, without a request gets a counted line, once a minute for each process and kind at most.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from mig.trust.strangers import Strangers

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds in which a client asks something; libzmq itself waits as long for its greeting."""
_CROSS = 5.0
"""Seconds by which the news of a connection may come later than its request: they take different ways."""
_MOST = 1024
"""Processes whose last request is remembered."""
_CREDENTIALS = struct.Struct("@3i")


@dataclass(frozen=True)
class Client:
    """A connection: whose, and since when."""

    pid: int
    uid: int
    since: float


class Silent:
    """Who came, who asked, and who therefore has to be named."""

    def __init__(self) -> None:
        self._there: dict[int, Client] = {}
        self._asked: dict[int, float] = {}

    def came(self, fd: int, client: Client) -> None:
        """A connection is there."""
        self._there[fd] = client

    def asked(self, pid: int, now: float) -> None:
        """A process has made a request."""
        if len(self._asked) >= _MOST and pid not in self._asked:
            del self._asked[next(iter(self._asked))]
        self._asked[pid] = now

    def went(self, fd: int) -> Client | None:
        """A connection has ended: whose it was if that had asked nothing."""
        client = self._there.pop(fd, None)
        return client if client and self._is_silent(client) else None

    def stays(self, fd: int, client: Client) -> bool:
        """Whether this very connection is still there and its process has asked nothing."""
        return self._there.get(fd) is client and self._is_silent(client)

    def _is_silent(self, client: Client) -> bool:
        return self._asked.get(client.pid, -math.inf) < client.since - _CROSS


class Watch:
    """Listens to what libzmq tells of the connections of ``watched``, which is bound to ``path``."""

    def __init__(self, watched: zmq.asyncio.Socket, path: Path, strangers: Strangers) -> None:
        self.silent = Silent()
        self._path, self._strangers = str(path), strangers
        self._news = watched.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            told = await recv_monitor_message(self._news)
            fd = told["value"]
            if told["event"] == zmq.EVENT_ACCEPTED:
                if client := self._who(fd, loop.time()):
                    self.silent.came(fd, client)
                    loop.call_later(PATIENCE, self._still, fd, client)
            elif client := self.silent.went(fd):
                self._say(client, "it left the control socket, or was sent away, without a request")

    def close(self) -> None:
        """Listen no more."""
        self._news.close()

    def _still(self, fd: int, client: Client) -> None:
        if self.silent.stays(fd, client):
            self._say(client, f"it has been on the control socket for {PATIENCE:.0f} s without a request")

    def _say(self, client: Client, what: str) -> None:
        self._strangers.say(log, f"process {client.pid} of user {client.uid}", what)

    def _who(self, fd: int, now: float) -> Client | None:
        """Whose connection libzmq has accepted; None when it has ended meanwhile."""
        try:
            with socket.socket(fileno=os.dup(fd)) as s:
                if s.family != socket.AF_UNIX or s.getsockname() != self._path:
                    return None  # the number is something else's by now
                pid, uid, _ = _CREDENTIALS.unpack(s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        except OSError:
            return None
        return Client(pid, uid, now)
