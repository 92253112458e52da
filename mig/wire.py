"""Messages between our processes: msgpack maps in length-prefixed frames, over TCP or unix sockets, with limits on all that is read.

A frame is ``u32 length`` (little endian) + msgpack.  Reads take exactly one frame and nothing of what follows, so that a socket can be
handed to another process, or turned into a raw stream, between two frames.

Connections between nodes begin with a mutual proof of the cluster key (:func:`prove`): each side sends a nonce and answers the other's
with an HMAC over both nonces and its role.  Neither side reads anything else from a peer that has not proved itself.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgpack

from mig import paths

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

VERSION = 1
"""What we speak; a peer that says less is understood down to :data:`OLDEST`."""
OLDEST = 1
MAX_FRAME = 4 << 20
"""Bytes of one message; bulk data (images, pipe contents) travels as raw streams announced by a message."""
MAGIC = b"mig1"
PATIENCE = 10.0
"""Seconds for a connection and its proof: milliseconds as a rule, but nodes are busy, which is our normal case."""
Message = dict[str, Any]


class WireError(ConnectionError):
    """The peer sent something that is not ours: too long, not a map, wrong magic or key."""


def pack(m: Message) -> bytes:
    """One frame."""
    b = cast(bytes, msgpack.packb(m, use_bin_type=True))
    if len(b) > MAX_FRAME:
        raise WireError(f"message of {len(b)} bytes is over the limit of {MAX_FRAME}")
    return struct.pack("<I", len(b)) + b


def unpack(b: bytes | bytearray | memoryview) -> Message:
    """The map in one frame's payload; raises :class:`WireError` on anything else."""
    try:
        m = msgpack.unpackb(b, raw=False, strict_map_key=False)  # strings and lists longer than the frame are refused by msgpack itself
    except Exception as e:
        raise WireError(f"not msgpack: {e}") from e
    if not isinstance(m, dict):
        raise WireError("a message must be a map")
    return m


# -- blocking sockets -------------------------------------------------------------------------------------------------------------


def recv_exact(s: socket.socket, n: int) -> bytearray:
    """Exactly ``n`` bytes; raises ``EOFError`` when the peer closes before."""
    b = bytearray(n)
    mv = memoryview(b)
    while mv:
        k = s.recv_into(mv)
        if not k:
            raise EOFError("connection closed by the peer")
        mv = mv[k:]
    return b


def send(s: socket.socket, **m: Any) -> None:
    """Send one message, blocking."""
    s.sendall(pack(m))


def recv(s: socket.socket) -> Message:
    """Receive one message, blocking; raises ``EOFError`` at the end of the stream."""
    (n,) = struct.unpack("<I", recv_exact(s, 4))
    if n > MAX_FRAME:
        raise WireError(f"frame of {n} bytes announced; the limit is {MAX_FRAME}")
    return unpack(recv_exact(s, n))


# -- asyncio on raw non-blocking sockets ------------------------------------------------------------------------------------------


def _running_loop() -> AbstractEventLoop:
    import asyncio  # helpers that only block do without it: it is half of what they would import

    return asyncio.get_running_loop()


async def arecv_exact(s: socket.socket, n: int) -> bytearray:
    """As :func:`recv_exact`, for a non-blocking socket in the running loop."""
    loop = _running_loop()
    b = bytearray(n)
    mv = memoryview(b)
    while mv:
        k = await loop.sock_recv_into(s, mv)
        if not k:
            raise EOFError("connection closed by the peer")
        mv = mv[k:]
    return b


async def asend(s: socket.socket, **m: Any) -> None:
    """Send one message; concurrent senders on one socket must hold a lock of their own."""
    await _running_loop().sock_sendall(s, pack(m))


async def arecv(s: socket.socket) -> Message:
    """Receive one message; raises ``EOFError`` at the end of the stream."""
    (n,) = struct.unpack("<I", await arecv_exact(s, 4))
    if n > MAX_FRAME:
        raise WireError(f"frame of {n} bytes announced; the limit is {MAX_FRAME}")
    return unpack(await arecv_exact(s, n))


# -- the cluster key --------------------------------------------------------------------------------------------------------------


def load_key(path: Path | None = None) -> bytes | None:
    """The cluster key (32 bytes, or 64 hex digits), or None where there is none."""
    try:
        b = (path or paths.KEY).read_bytes()
    except FileNotFoundError:
        return None
    if len(b) == 32:
        return b
    try:
        k = bytes.fromhex(b.decode().strip())
    except (UnicodeDecodeError, ValueError):
        k = b""
    if len(k) != 32:
        raise WireError(f"{path or paths.KEY} does not hold a key of 32 bytes")
    return k


def _proof(key: bytes, role: bytes, mine: bytes, theirs: bytes) -> bytes:
    return hmac.new(key, MAGIC + role + mine + theirs, hashlib.sha256).digest()


async def prove(s: socket.socket, key: bytes, *, server: bool, timeout: float = PATIENCE) -> None:
    """Mutual proof of the cluster key on a fresh connection; raises :class:`WireError` when the peer has another key.

    Client and server bind the proof to their role, so a reflected proof does not pass.
    """
    import asyncio

    loop = _running_loop()
    me, you = (b"S", b"C") if server else (b"C", b"S")

    async def talk() -> None:
        mine = os.urandom(32)
        await loop.sock_sendall(s, MAGIC + mine)
        hello = await arecv_exact(s, len(MAGIC) + 32)
        if bytes(hello[: len(MAGIC)]) != MAGIC:
            raise WireError("the peer does not speak our protocol")
        theirs = bytes(hello[len(MAGIC) :])
        if not server:
            await loop.sock_sendall(s, _proof(key, me, mine, theirs))
        proof = bytes(await arecv_exact(s, 32))
        if not hmac.compare_digest(proof, _proof(key, you, theirs, mine)):
            raise WireError("the peer does not have our cluster key")
        if server:
            await loop.sock_sendall(s, _proof(key, me, mine, theirs))

    try:
        await asyncio.wait_for(talk(), timeout)
    except TimeoutError as e:
        raise WireError("the peer did not prove the cluster key in time") from e


async def connect(addr: str, port: int, key: bytes, *, timeout: float = PATIENCE) -> socket.socket:
    """A proved TCP connection to another node's process: non-blocking, no delay, kept alive."""
    import asyncio

    loop = _running_loop()
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    s.setblocking(False)
    try:
        await asyncio.wait_for(loop.sock_connect(s, (addr, port)), timeout)
        tune(s)
        await prove(s, key, server=False, timeout=timeout)
    except BaseException:
        s.close()
        raise
    return s


def tune(s: socket.socket, dead_after: int = 300) -> None:
    """No Nagle; a silent peer is given up after about ``dead_after`` seconds.

    The default outlasts a cut cable that somebody plugs in again; a move's control connection, beside which a process stands frozen,
    uses less.
    """
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, dead_after // 4))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, dead_after // 8))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead_after * 1000)
