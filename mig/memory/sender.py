"""The page source's side of the push connection: frames with the contents of pages, packed where that pays."""

from __future__ import annotations

import os
import socket
import time

from mig.memory import frames
from mig.memory.frames import RAW_LENGTH, Codec, Kind
from mig.memory.packing import Chooser, Packer, pack_best


class Sender:
    """Sends contents over one blocking socket.  One thread at a time."""

    def __init__(self, sock: socket.socket, *, limit: float = 0.0) -> None:
        """``limit``: bytes a second that the caller keeps to; 0 for none."""
        self.sock = sock
        cores = os.cpu_count() or 1
        self.chooser = Chooser(free_core=os.getloadavg()[0] < cores - 0.5, limit=limit)
        self._packer = Packer()

    def send(self, kind: Kind, index: int, addr: int, contents: bytes | memoryview) -> int:
        """One frame; returns its bytes on the wire.  Raises ``OSError``."""
        codec, payload = pack_best(self._packer, self.chooser, contents)
        if codec == Codec.RAW:
            head = frames.data(kind, index, addr, len(payload))
        else:
            head = frames.data(kind, index, addr, len(payload) + RAW_LENGTH.size, codec) + RAW_LENGTH.pack(len(contents))
        began = time.perf_counter()
        sent = self.sock.sendmsg([head, payload])
        if sent < len(head):
            self.sock.sendall(head[sent:])
            sent = len(head)
        if sent < len(head) + len(payload):
            self.sock.sendall(memoryview(payload)[sent - len(head) :])
        now = time.perf_counter()
        self.chooser.sent(len(head) + len(payload), now - began, now)
        return len(head) + len(payload)
