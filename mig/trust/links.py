"""Encrypted connections between nodes: TLS 1.3 with both ends pinned.  Every TCP connection of the pool is made or accepted here.

What is returned is a plain unix socket; behind it a relay process of ours (``relay.c``, one for each process that has connections) speaks
TLS with the other node.  So a connection can be read and written in any way, handed to another process and outlive its first owner, as a
bare TCP connection can.  Home's files go from /dev/fuse to the wire in the relay itself (:func:`carry_fuse`).  Measured on two cores for
both ends together: 0.9 GB/s, 80 us more for a question and its answer, 1.4 ms for a connection; those of a move are made before its freeze.

A connection of a guest to its home is *lasting*: its client's relay makes another TCP connection when the first is silent (a long cut,
or an address that one of the two machines has no longer), and both send again what did not arrive (``lasting.c``).  Whoever accepts
hears of it as of one that is not for him (:class:`Resumed`).

The certificate's owner is looked up in :mod:`mig.trust.store`.  A certificate that is not known *yet* is waited for: gossip and the
first connection of a new node may cross.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass

from mig import paths, wire
from mig.trust import store
from mig.trust.addresses import Addresses
from mig.trust.store import Peer

_DIGEST, _TEXT = 32, 127
_HEADER = 1 + _DIGEST + _TEXT
_CLIENT, _LASTING, _SERVER, _FUSE, _END, _ADDRESS = b"C", b"L", b"S", b"F", b"X", b"A"
_PROVED, _RESUMED = 1, 2
_ORDER = struct.Struct("=Qc7x")
"""An order to the relay: the number of a connection (the inode of our end of it), and what to do."""
LEARNING = 2.0
"""Seconds for which a certificate that nobody knows is waited for: two rounds of gossip."""
_LOOK = 0.05


class Stranger(wire.WireError):
    """The other end proved a certificate that the pool does not know, or another than that of the node that was meant."""


class Resumed(wire.WireError):
    """The other end went on with a connection that was made before: nothing is left to do."""


@dataclass
class _Lasting:
    """Where a lasting connection of ours leads."""

    node: int
    addr: str
    port: int


@dataclass
class _Relay:
    """The running helper."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def alive(self) -> bool:
        return self.process.poll() is None


_relay: _Relay | None = None
_lasting: dict[int, _Lasting] = {}
_lock = threading.Lock()
_store: store.Store | None = None
_addresses: Addresses | None = None


def known() -> store.Store:
    """The table of certificates."""
    global _store
    if _store is None:
        _store = store.Store()
    return _store


def addresses() -> Addresses:
    """The table of addresses."""
    global _addresses
    if _addresses is None:
        _addresses = Addresses()
    return _addresses


def start() -> None:
    """Start the relay now, so that the first connection does not wait for it (10 ms); idempotent."""
    with _lock:
        _running()


def stop() -> None:
    """Let the relay go: it ends with the last of its connections, and at once when there are none."""
    global _relay
    with _lock:
        if _relay is not None:
            _relay.control.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                _relay.process.wait(0.2)
        _relay = None


def pid() -> int:
    """The relay's pid, 0 when there is none."""
    return _relay.process.pid if _relay is not None else 0


def _forget() -> None:
    """In a forked child: the relay is the parent's; the number of our copy of its socket may mean another descriptor by now."""
    global _relay, _lock
    _lock = threading.Lock()
    if _relay is not None:
        _relay.control.detach()
        _relay = None


os.register_at_fork(after_in_child=_forget)


def _running() -> _Relay:
    global _relay
    if _relay is None or not _relay.alive():
        if _relay is not None:
            _relay.control.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [str(paths.libexec() / "relay"), "--serve", str(store.pem()), "--control", str(theirs.fileno())]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd="/")
        _relay = _Relay(process, ours)
    return _relay


def _hand_over(conn: socket.socket, role: bytes) -> socket.socket:
    """Give a TCP connection to the relay; returns our end of what it makes of it.  ``conn`` is closed here."""
    ours, theirs = socket.socketpair()
    order = _ORDER.pack(_number(ours), role)
    try:
        with _lock, conn, theirs:
            try:
                socket.send_fds(_running().control, [order], [conn.fileno(), theirs.fileno()])
            except ConnectionError:  # it died a moment ago
                _running().process.wait()
                socket.send_fds(_running().control, [order], [conn.fileno(), theirs.fileno()])
    except BaseException:
        ours.close()
        raise
    return ours


def _number(ours: socket.socket) -> int:
    return os.fstat(ours.fileno()).st_ino


def carry_fuse(ours: socket.socket, device: int, down: int) -> int:
    """From now on the relay itself carries FUSE messages between ``device`` and the connection behind ``ours``; returns its number.

    Nothing may be on its way.  ``down`` (an eventfd) is written when that ends: with the mount, the connection, :func:`end`, or with us.
    The caller may close all three.  Blocking, for a moment.  Raises ``OSError`` when the connection has ended.
    """
    number = _number(ours)
    with _lock:
        socket.send_fds(_running().control, [_ORDER.pack(number, _FUSE)], [device, down])
    # our end stays open until the relay has let go of its own: an end seen before the order would be that of the connection
    ours.settimeout(wire.PATIENCE)
    if ours.recv(1):
        raise ConnectionError(errno.EPROTO, "the connection was not quiet")
    return number


def end(number: int) -> None:
    """End what :func:`carry_fuse` began; idempotent."""
    with _lock, contextlib.suppress(OSError):
        if _relay is not None and _relay.alive():
            _relay.control.send(_ORDER.pack(number, _END))


def follow() -> None:
    """Tell the relay where the nodes are now to which lasting connections of ours lead; to be called every few seconds."""
    for number, to in _lasting.items():
        addr = addresses().of(to.node)
        if addr and addr != to.addr:
            to.addr = addr
            with _lock, contextlib.suppress(OSError):
                if _relay is not None and _relay.alive():
                    _relay.control.send(_ORDER.pack(number, _ADDRESS) + _sockaddr(addr, to.port))


def _sockaddr(addr: str, port: int) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6``."""
    family = _family(addr)
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack(">H", port) + socket.inet_pton(family, addr) + bytes(8)
    return struct.pack("=H", family) + struct.pack(">HI", port, 0) + socket.inet_pton(family, addr) + bytes(4)


def _fingerprint(header: bytes | bytearray) -> str:
    """The fingerprint that the relay reports.  Raises :class:`Resumed`, and :class:`wire.WireError` when there was no handshake."""
    if header[0] == _RESUMED:
        raise Resumed("the connection goes on with an older one")
    if header[0] != _PROVED:
        text = bytes(header[1 + _DIGEST :]).split(b"\0")[0].decode(errors="replace")
        raise wire.WireError(f"no encrypted connection: {text}")
    return store.fingerprint(bytes(header[1 : 1 + _DIGEST]))


def _wrong(peer: Peer | None, fp: str, meant: int | None) -> Stranger:
    if peer is None:
        return Stranger(f"its certificate {fp} is not known in the pool (has it our cluster key?)")
    return Stranger(f"its certificate is that of {peer.name} (id {peer.id}), not of node {meant}")


# -- in the running loop ----------------------------------------------------------------------------------------------------------


async def connect(
    node: int | None, addr: str, port: int, *, timeout: float = wire.PATIENCE, dead_after: int = 300, lasting: bool = False
) -> socket.socket:
    """An encrypted connection to a process of node ``node`` (its id; None: of any node of the pool, where a token decides); non-blocking.

    ``dead_after``: seconds after which a silent peer is given up.  ``lasting``: it outlives its TCP connection.  Raises ``OSError``,
    ``TimeoutError``, and :class:`Stranger` when another than that node answers.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        s = _tcp(addr)
        try:
            s.setblocking(False)
            await loop.sock_connect(s, (addr, port))
            wire.tune(s, dead_after)
        except BaseException:
            s.close()
            raise
        plain, _ = await _meet(s, _LASTING if lasting else _CLIENT, node)
    if lasting:
        _note(plain, node, addr, port)
    return plain


def _note(plain: socket.socket, node: int | None, addr: str, port: int) -> None:
    if node is not None:
        _lasting[_number(plain)] = _Lasting(node, addr, port)


async def accept(conn: socket.socket, *, timeout: float = wire.PATIENCE, dead_after: int = 300) -> tuple[socket.socket, Peer]:
    """The encrypted form of an accepted connection (closed here, whatever happens), and which node is there; as :func:`connect`."""
    try:
        wire.tune(conn, dead_after)
        async with asyncio.timeout(timeout):
            return await _meet(conn, _SERVER, None)
    finally:
        conn.close()


async def _meet(conn: socket.socket, role: bytes, node: int | None) -> tuple[socket.socket, Peer]:
    plain = _hand_over(conn, role)
    try:
        plain.setblocking(False)
        try:
            fp = _fingerprint(await wire.arecv_exact(plain, _HEADER))
        except EOFError:
            raise wire.WireError("no encrypted connection: the relay ended") from None
        deadline = time.monotonic() + LEARNING
        while (peer := known().who(fp)) is None or node not in (None, peer.id):
            if time.monotonic() > deadline:
                raise _wrong(peer, fp, node)
            await asyncio.sleep(_LOOK)
        return plain, peer
    except BaseException:
        plain.close()
        raise


# -- blocking ---------------------------------------------------------------------------------------------------------------------


def dial(node: int | None, addr: str, port: int, *, timeout: float = wire.PATIENCE, lasting: bool = False) -> socket.socket:
    """As :func:`connect`, blocking, for helpers and threads; the socket is blocking."""
    s = _tcp(addr)
    try:
        s.settimeout(timeout)
        s.connect((addr, port))
        wire.tune(s)
    except BaseException:
        s.close()
        raise
    plain, _ = _meet_blocking(s, _LASTING if lasting else _CLIENT, node, timeout)
    if lasting:
        _note(plain, node, addr, port)
    return plain


def answer(conn: socket.socket, *, timeout: float = wire.PATIENCE, dead_after: int = 300) -> tuple[socket.socket, Peer]:
    """As :func:`accept`, blocking."""
    try:
        wire.tune(conn, dead_after)
        return _meet_blocking(conn, _SERVER, None, timeout)
    finally:
        conn.close()


def _meet_blocking(conn: socket.socket, role: bytes, node: int | None, timeout: float) -> tuple[socket.socket, Peer]:
    plain = _hand_over(conn, role)
    try:
        plain.settimeout(timeout)
        try:
            fp = _fingerprint(wire.recv_exact(plain, _HEADER))
        except EOFError:
            raise wire.WireError("no encrypted connection: the relay ended") from None
        deadline = time.monotonic() + LEARNING
        while (peer := known().who(fp)) is None or node not in (None, peer.id):
            if time.monotonic() > deadline:
                raise _wrong(peer, fp, node)
            time.sleep(_LOOK)
        plain.settimeout(None)
        return plain, peer
    except BaseException:
        plain.close()
        raise


def _tcp(addr: str) -> socket.socket:
    return socket.socket(_family(addr), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


def _family(addr: str) -> int:
    return socket.AF_INET6 if ":" in addr else socket.AF_INET
