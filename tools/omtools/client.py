"""A small synchronous client of omdiscd's control socket.

The socket is a ZeroMQ ROUTER at an ipc path; we speak ZMTP 3.0 to it ourselves, as its DEALER (https://rfc.zeromq.org/spec/23/, mechanism
NULL: a greeting, READY, then length-prefixed frames).  That is a page of code, and importing pyzmq costs 25 ms, more than all
else that ``mosrun true`` does.  The kernel tells omdiscd who we are (SO_PEERCRED), so nothing about that is in the messages.

A message is one msgpack map ``{v, id, op, …}``; replies carry the same id, ``more`` (a progress or stream item), and ``ok``.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from mig import paths
from mig.errors import MigError, NoDaemon, NotPermitted

VERSION = 1
CONNECT_TIMEOUT = 2.0
"""Seconds in which a daemon that lives has taken the connection."""
ANSWER_TIMEOUT = 10.0
"""Seconds for an answer that needs no other node."""
MAX_FRAME = 16 << 20
_BUSY = "is it stopped, or the machine overloaded?"
_AT_HOME = "ask at its home, outside of that job"
MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes([3, 0]) + b"NULL".ljust(20, b"\0") + bytes(32)


class Lost(Exception):
    """The daemon went away while we waited for an answer: what we asked for may or may not have been done."""


class Client:
    """A connection to the local omdiscd; a context manager.  Raises :class:`NoDaemon` when nothing takes the connection in two seconds."""

    def __init__(self, path: Path | None = None, *, timeout: float = CONNECT_TIMEOUT) -> None:
        self._path = path or paths.CONTROL
        self._ids = 0
        self._buffer = bytearray()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(os.fspath(self._path))
            self._greet(time.monotonic() + timeout)
        except PermissionError as e:
            self._sock.close()
            raise NotPermitted(f"may not open {self._path}: {e.strerror}") from e
        except (OSError, Lost) as e:
            self._sock.close()
            if paths.in_cell():
                raise NoDaemon("this is part of a job that was moved to another machine, where no omdiscd is its own", hint=_AT_HOME) from e
            if isinstance(e, TimeoutError):
                raise NoDaemon(f"omdiscd does not answer on this machine ({self._path})", hint=_BUSY) from e
            raise NoDaemon(f"omdiscd is not running on this machine ({self._path})", hint="start it as root: omdiscd") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def call(self, op: str, *, wait: float = ANSWER_TIMEOUT, **args: Any) -> dict[str, Any]:
        """Ask for something that has one answer.  Raises the daemon's :class:`MigError`, or :class:`NoDaemon` when it stays silent."""
        for reply in self.stream(op, wait=wait, **args):
            if reply is not None and not reply.get("more"):
                return reply
        raise NoDaemon(f"omdiscd did not answer within {wait:g} s", hint=_BUSY)

    def stream(self, op: str, *, wait: float | None = None, tick: float | None = None, **args: Any) -> Iterator[dict[str, Any] | None]:
        """Ask, and yield every item and at last the answer (the one without ``more``).

        ``tick`` seconds without an item yield None, so that a caller can show that time passes.  Ends without an answer after
        ``wait`` seconds.  Raises the daemon's :class:`MigError`, and :class:`Lost` when the connection breaks.
        """
        self._ids += 1
        self._send(0, msgpack.packb({"v": VERSION, "id": self._ids, "op": op, **args}, use_bin_type=True))
        end = None if wait is None else time.monotonic() + wait
        while True:
            now = time.monotonic()
            if end is not None and now >= end:
                return
            until = min((t for t in (end, now + tick if tick else None) if t is not None), default=None)
            try:
                reply = self._receive(until)
            except TimeoutError:
                yield None
                continue
            if reply.get("id") != self._ids:
                continue  # the rest of an earlier stream
            if not reply.get("more") and not reply.get("ok", False):
                raise MigError.from_wire(reply.get("error") or {})
            yield reply
            if not reply.get("more"):
                return

    # -- ZMTP ---------------------------------------------------------------------------------------------------------------------

    def _greet(self, until: float) -> None:
        ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + struct.pack(">I", 0)
        self._sock.sendall(GREETING)
        self._send(COMMAND, ready)
        theirs = self._peek(64, until)
        del self._buffer[:64]
        if theirs[0] != 0xFF or theirs[10] < 3 or theirs[12:16] != b"NULL":
            raise Lost("not a ZeroMQ socket of our kind")
        flags, body = self._frame(until)
        if not flags & COMMAND or not body.startswith(b"\x05READY"):
            raise Lost("refused by the daemon")

    def _send(self, flags: int, body: bytes) -> None:
        head = struct.pack(">BB", flags, len(body)) if len(body) < 256 else struct.pack(">BQ", flags | LONG, len(body))
        try:
            self._sock.sendall(head + body)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise Lost("omdiscd closed the connection") from e

    def _peek(self, n: int, until: float | None) -> bytes:
        """The next ``n`` bytes, which stay in the buffer: a ``TimeoutError`` loses nothing."""
        while len(self._buffer) < n:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Lost("omdiscd closed the connection")
            self._buffer += data
        return bytes(self._buffer[:n])

    def _frame(self, until: float | None) -> tuple[int, bytes]:
        long = self._peek(1, until)[0] & LONG
        head = self._peek(9 if long else 2, until)
        length = int(struct.unpack(">Q", head[1:])[0]) if long else head[1]
        if length > MAX_FRAME:
            raise Lost(f"a frame of {length} bytes")
        whole = self._peek(len(head) + length, until)
        del self._buffer[: len(whole)]
        return whole[0], whole[len(head) :]

    def _receive(self, until: float | None) -> dict[str, Any]:
        parts: list[bytes] = []
        while True:
            flags, body = self._frame(until)
            if flags & COMMAND:
                if body.startswith(b"\x04PING"):
                    self._send(COMMAND, b"\x04PONG" + body[7:])  # 2 bytes of time to live come before the context
                continue
            parts.append(body)
            if not flags & MORE:
                break
        reply = msgpack.unpackb(parts[-1], raw=False, strict_map_key=False)
        if not isinstance(reply, dict):
            raise Lost("the daemon's answer is no map")
        return reply
