"""Encrypted connections: the real relay, real certificates, real TCP; both ends in this process, each with a store of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mig import paths, wire
from mig.trust import links, store
from mig.trust.strangers import Strangers

RELAY = Path(sys.prefix) / "libexec/mig/relay"
T = TypeVar("T")


@pytest.fixture(autouse=True)
def me(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process is node 1, and knows itself; its fingerprint."""
    monkeypatch.setattr(paths, "TRUST", tmp_path / "trust")
    monkeypatch.setattr(links, "_store", None)
    monkeypatch.setattr(links, "LEARNING", 0.3)
    fp = store.make_identity()
    links.known().write([(1, "n1", fp)])
    yield fp
    links.stop()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as s:
        s.setblocking(False)
        yield s


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def with_limit() -> T:
        return await asyncio.wait_for(main(), 20)

    return asyncio.run(with_limit())


async def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    async def accept() -> socket.socket:
        conn, _ = await asyncio.get_running_loop().sock_accept(listener)
        s, peer = await links.accept(conn)
        assert (peer.id, peer.name) == (1, "n1")
        return s

    a, b = await asyncio.gather(links.connect(1, *listener.getsockname()), accept())
    return a, b


def test_messages_and_ends_pass_in_both_directions(listener: socket.socket) -> None:
    async def main() -> None:
        a, b = await pair(listener)
        await wire.asend(a, op="there")
        assert (await wire.arecv(b))["op"] == "there"
        await wire.asend(b, op="back")
        b.shutdown(socket.SHUT_WR)  # half an end: the other direction goes on
        assert (await wire.arecv(a))["op"] == "back"
        with pytest.raises(EOFError):
            await wire.arecv(a)
        await wire.asend(a, op="still")
        a.close()
        assert (await wire.arecv(b))["op"] == "still"
        with pytest.raises(EOFError):
            await wire.arecv(b)
        b.close()

    run(main)


def test_much_passes_unchanged_and_a_slow_reader_holds_the_writer(listener: socket.socket) -> None:
    data = os.urandom(1 << 20) * 24

    async def main() -> None:
        a, b = await pair(listener)
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(a, data))
        await asyncio.sleep(0.3)
        assert not sending.done()  # nobody reads: what is on its way is bounded
        assert bytes(await wire.arecv_exact(b, len(data))) == data
        await sending
        a.close()
        b.close()

    run(main)


def test_what_is_on_the_wire_cannot_be_read(listener: socket.socket) -> None:
    """A tap between the two sees handshake and records, and nothing of what is said."""
    secret, seen = b"nobody may read this " * 40, bytearray()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as tap:
            tap.setblocking(False)

            async def between() -> None:
                near, _ = await loop.sock_accept(tap)
                far = socket.create_connection(listener.getsockname())
                far.setblocking(False)

                async def carry(x: socket.socket, y: socket.socket) -> None:
                    while data := await loop.sock_recv(x, 65536):
                        seen.extend(data)
                        await loop.sock_sendall(y, data)

                with near, far:
                    await asyncio.gather(carry(near, far), carry(far, near))

            task = asyncio.ensure_future(between())

            async def accept() -> socket.socket:
                conn, _ = await loop.sock_accept(listener)
                return (await links.accept(conn))[0]

            a, b = await asyncio.gather(links.connect(1, *tap.getsockname()), accept())
            await loop.sock_sendall(a, secret)
            assert bytes(await wire.arecv_exact(b, len(secret))) == secret
            task.cancel()
            a.close()
            b.close()

    run(main)
    assert len(seen) > len(secret) and secret[:20] not in seen


def test_another_than_the_node_that_is_meant_is_refused(listener: socket.socket, me: str) -> None:
    links.known().write([(1, "n1", me), (2, "n2", "A" * 22)])

    async def main() -> None:
        error, _ = await asyncio.gather(links.connect(2, *listener.getsockname()), refused(), return_exceptions=True)
        assert isinstance(error, links.Stranger) and "that of n1 (id 1), not of node 2" in str(error)

    async def refused() -> None:
        conn, _ = await asyncio.get_running_loop().sock_accept(listener)
        with conn:
            s, _ = await links.accept(conn)
            with pytest.raises(EOFError):
                await wire.arecv(s)
            s.close()

    run(main)


def test_a_certificate_that_nobody_knows_is_refused_and_one_learnt_meanwhile_is_not(listener: socket.socket, me: str) -> None:
    links.known().write([])

    async def main() -> None:
        results = await asyncio.gather(pair(listener), return_exceptions=True)
        assert isinstance(results[0], (links.Stranger, wire.WireError))
        waiting = asyncio.ensure_future(pair(listener))
        await asyncio.sleep(0.1)
        links.known().write([(1, "n1", me)])
        a, b = await waiting
        a.close()
        b.close()

    run(main)


def test_one_without_encryption_is_refused_at_either_end(listener: socket.socket) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def plain_server() -> None:
            conn, _ = await loop.sock_accept(listener)
            with conn:
                await loop.sock_sendall(conn, wire.pack({"op": "hello"}))
                await loop.sock_recv(conn, 1000)

        error, _ = await asyncio.gather(links.connect(1, *listener.getsockname()), plain_server(), return_exceptions=True)
        assert isinstance(error, wire.WireError) and "no encrypted connection" in str(error)
        with socket.create_connection(listener.getsockname()) as c:
            c.sendall(wire.pack({"op": "info"}))
            conn, _ = await loop.sock_accept(listener)
            with pytest.raises(wire.WireError, match="no encrypted connection"):
                await links.accept(conn)

    run(main)


def test_a_connection_that_was_handed_on_outlives_its_first_owner(listener: socket.socket, tmp_path: Path) -> None:
    """As from omdiscd, which is killed, to a keeper: the relay stays for it, and ends with it."""
    code = f"""
import asyncio, socket, sys
from pathlib import Path
from mig import paths
paths.TRUST = Path({str(paths.TRUST)!r})
from mig.trust import links
async def main():
    s = await links.connect(1, "127.0.0.1", {listener.getsockname()[1]})
    socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [str(links.pid()).encode()], [s.fileno()])
    sys.stdin.read()
asyncio.run(main())
"""
    ours, theirs = socket.socketpair()
    with subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.PIPE) as owner:

        async def accept() -> socket.socket:
            conn, _ = await asyncio.get_running_loop().sock_accept(listener)
            return (await links.accept(conn))[0]

        b = run(accept)
        said, fds, _, _ = socket.recv_fds(ours, 100, 1)
        owner.kill()
    ours.close()
    theirs.close()
    relay = os.pidfd_open(int(said))
    with socket.socket(fileno=fds[0]) as a, b:
        b.setblocking(True)
        wire.send(a, op="I am still here")
        assert wire.recv(b)["op"] == "I am still here"
    end = time.monotonic() + 10
    while Path(f"/proc/{int(said)}/status").exists() and "zombie" not in Path(f"/proc/{int(said)}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.close(relay)


def test_blocking_ends_for_threads(listener: socket.socket) -> None:
    listener.setblocking(True)
    got: list[Any] = []

    def serve() -> None:
        s, peer = links.answer(listener.accept()[0])
        with s:
            got.append((peer.id, bytes(wire.recv_exact(s, 5))))
            s.sendall(b"world")

    t = threading.Thread(target=serve)
    t.start()
    with links.dial(1, *listener.getsockname()) as s:
        s.sendall(b"hello")
        assert bytes(wire.recv_exact(s, 5)) == b"world"
    t.join(10)
    assert got == [(1, b"hello")]


def test_after_a_cut_the_next_try_comes_within_seconds() -> None:
    """This kernel is one that can bound the doubling of TCP's patience; `tests/cluster/test_pool_of_twelve.py` has the cut of a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as s:
        assert s.getsockopt(socket.IPPROTO_TCP, 44) > 10_000
        wire.tune(s)
        assert s.getsockopt(socket.IPPROTO_TCP, 44) == wire.RTO_MAX_MS


def test_what_is_lost_is_sent_again_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as s:
        assert s.getsockopt(socket.IPPROTO_TCP, 45) == s.getsockopt(socket.IPPROTO_TCP, 46) == 200_000
        wire.tune(s)
        tick = 10_000  # the kernel rounds up to its own
        assert wire.RTO_MIN_US <= s.getsockopt(socket.IPPROTO_TCP, 45) < wire.RTO_MIN_US + tick
        assert wire.DELACK_MAX_US <= s.getsockopt(socket.IPPROTO_TCP, 46) < wire.DELACK_MAX_US + tick


def test_a_relay_that_was_killed_is_replaced(listener: socket.socket) -> None:
    async def main() -> None:
        a, b = await pair(listener)
        subprocess.run(["kill", "-9", str(links.pid())], check=True)
        for s in (a, b):
            with pytest.raises((EOFError, OSError)):
                await wire.arecv(s)
            s.close()
        a, b = await pair(listener)
        await wire.asend(a, op="again")
        assert (await wire.arecv(b))["op"] == "again"
        a.close()
        b.close()

    run(main)


def test_the_private_key_is_roots_alone_and_stays_for_the_boot(me: str) -> None:
    assert store.pem().stat().st_mode & 0o777 == 0o600 and paths.TRUST.stat().st_mode & 0o777 == 0o700
    assert store.make_identity() == me and store.is_fingerprint(me)
    assert not any(map(store.is_fingerprint, ("", me + "x", "ä" * 22, None, 7, "!" * 22)))


def test_strangers_are_counted_and_said_once_a_minute() -> None:
    s = Strangers()
    assert s.line(0, "1.2.3.4", "knocks") == "1.2.3.4: knocks"
    assert [s.line(i, "1.2.3.4", "knocks") for i in range(1, 60)] == [""] * 59
    assert s.line(0, "1.2.3.4", "rings") and s.line(0, "1.2.3.5", "knocks")
    assert s.line(60, "1.2.3.4", "knocks") == "1.2.3.4: knocks (59 more since the last line)"
    assert sum(bool(s.line(61, f"10.0.{i >> 8}.{i & 255}", "knocks")) for i in range(5000)) < 300
    assert len(s._seen) <= 257 and s.total == 5063
