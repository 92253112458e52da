"""Messages between our processes: msgpack maps in length-prefixed frames, over TCP or unix sockets, with limits on all that is read.

A frame is ``u32 length`` (little endian) + msgpack.  Reads take exactly one frame and nothing of what follows, so that a socket can be
handed to another process, or turned into a raw stream, between two frames.

Connections between nodes are made and accepted by :mod:`mig.trust.links`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

import msgpack

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

VERSION = 1
"""What we speak; a peer that says less is understood down to :data:`OLDEST`."""
OLDEST = 1
MAX_FRAME = 4 << 20
"""Bytes of one message; bulk data (images, pipe contents) travels as raw streams announced by a message."""
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


_TCP_RTO_MAX_MS, _TCP_RTO_MIN_US, _TCP_DELACK_MAX_US = 44, 45, 46
RTO_MAX_MS = 2000
"""Milliseconds between two tries at the most.  TCP doubles them up to two minutes: after a cut of a minute the first word of a guest to its
home would come up to a minute late, and whoever waits for the answer gives up."""
RTO_MIN_US, DELACK_MAX_US = 20_000, 10_000
"""Microseconds until what may be lost is sent again at the least, and until a receiver acknowledges at the most: TCP's are 200 ms for both.
A move is a few dozen short messages each way, one waiting for the other: each that is lost would prolong the pause by 200 ms."""


def tune(s: socket.socket, dead_after: int = 300) -> None:
    """No Nagle; a silent peer is given up after about ``dead_after`` seconds.

    The default outlasts a cut cable that somebody plugs in again; a move's control connection, beside which a process stands frozen,
    uses less.  Our end of an encrypted connection is a unix socket: nothing is done, the relay's TCP connection was tuned when it was made.
    """
    if s.family == socket.AF_UNIX:
        return
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, dead_after // 4))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, dead_after // 8))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead_after * 1000)
    for option, value in ((_TCP_RTO_MAX_MS, RTO_MAX_MS), (_TCP_RTO_MIN_US, RTO_MIN_US), (_TCP_DELACK_MAX_US, DELACK_MAX_US)):
        with contextlib.suppress(OSError):  # since Linux 6.15
            s.setsockopt(socket.IPPROTO_TCP, option, value)
