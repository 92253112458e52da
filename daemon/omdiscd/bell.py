"""The datagram socket on which ``mospam`` tells that a session opened or closed.  Root's alone: by its mode, and by the kernel's word
(SO_PASSCRED) on who sent each datagram."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_LONGEST = 512


class Bell:
    """``rung`` is called once for all that has come."""

    def __init__(self, path: Path, rung: Callable[[], None]) -> None:
        self.path, self.rung = path, rung
        self.refused = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def start(self) -> None:
        """Bind, replacing what a dead predecessor left; raises ``OSError``."""
        self.path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            self._sock.bind(str(self.path))
        finally:
            os.umask(old)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        rang = False
        while True:
            try:
                text, ancillary, _, _ = self._sock.recvmsg(_LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            pid, uid = _sender(ancillary)
            if uid == 0:
                log.info("mospam %d: %s", pid, text.decode(errors="replace"))
                rang = True
            else:
                self.refused += 1
                log.warning("process %d of user %d rang mospam's bell; it is not heard", pid, uid)
        if rang:
            self.rung()

    def close(self) -> None:
        """Stop listening."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self.path.unlink(missing_ok=True)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack_from(data)
            return pid, uid
    return 0, -1
