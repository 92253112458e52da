"""Connections that outlive their TCP connection: two network namespaces and a real line between them, whose addresses and state change."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from mig import paths, wire
from mig.kernel import libc
from mig.tasks import Tasks
from mig.trust import links, store

HERE, THERE = "10.77.0.2", "10.77.0.1"


class Line:
    """We are at one end; the listener is at the other."""

    def __init__(self) -> None:
        self._other: threading.Event = threading.Event()
        self._end = threading.Event()
        self.tid = 0
        self.resumed = 0
        self.to_hang_up = 0
        self.refused: list[str] = []
        self.tasks = Tasks()
        self.listener: socket.socket
        self.sockets: list[socket.socket] = []
        """At the other end, for whoever wants to stand in between."""
        libc.unshare(libc.CLONE_NEWNET)
        self._thread = threading.Thread(target=self._stay_there)
        self._thread.start()
        self._other.wait()
        self.ip("link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(self.tid))
        self.ip("address", "add", f"{HERE}/24", "dev", "here")
        self.ip("link", "set", "here", "up")
        self.ip("address", "add", f"{THERE}/24", "dev", "there", there=True)
        self.ip("link", "set", "there", "up", there=True)

    def _stay_there(self) -> None:
        libc.unshare(libc.CLONE_NEWNET)
        self.tid = threading.get_native_id()
        self.listener = socket.create_server(("0.0.0.0", 0))
        self.listener.setblocking(False)
        self.sockets = [socket.socket() for _ in range(4)]
        self._other.set()
        self._end.wait()

    def ip(self, *words: str, there: bool = False) -> None:
        into = ["nsenter", f"--net=/proc/{os.getpid()}/task/{self.tid}/ns/net"] if there else []
        subprocess.run([*into, "ip", *words], check=True)

    def address(self, old: str, new: str, *, there: bool = False) -> None:
        """One end has another address from now on."""
        name = "there" if there else "here"
        self.ip("address", "del", f"{old}/24", "dev", name, there=there)
        self.ip("address", "add", f"{new}/24", "dev", name, there=there)

    def close(self) -> None:
        for s in (self.listener, *self.sockets):
            s.close()
        self._end.set()
        self._thread.join()


Test = Callable[[Line], Awaitable[None]]


@pytest.fixture(autouse=True)
def me(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process is node 1, and knows itself; its fingerprint."""
    monkeypatch.setattr(paths, "TRUST", tmp_path / "trust")
    monkeypatch.setattr(links, "_store", None)
    monkeypatch.setattr(links, "_addresses", None)
    fp = store.make_identity()
    links.known().write([(1, "n1", fp)])
    yield fp
    assert links._relay is not None
    relay = links._relay.process
    links.stop()
    relay.wait(10)  # it ends with its last connection


def run(test: Test, limit: float = 100) -> None:
    """In a thread of its own: a network namespace belongs to a thread, and the relay is started in ours."""
    failed: list[BaseException] = []

    async def with_limit(line: Line) -> None:
        await asyncio.wait_for(test(line), limit)
        line.tasks.cancel()

    def go() -> None:
        try:
            line = Line()
            try:
                asyncio.run(with_limit(line))
            finally:
                line.close()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


async def pair(line: Line) -> tuple[socket.socket, socket.socket]:
    a, b = await asyncio.gather(links.connect(1, THERE, line.listener.getsockname()[1], lasting=True), accept(line))
    line.tasks.spawn(go_on_accepting(line))
    return a, b


async def accept(line: Line) -> socket.socket:
    conn, _ = await asyncio.get_running_loop().sock_accept(line.listener)
    if line.to_hang_up:
        line.to_hang_up -= 1
        conn.close()
        raise wire.WireError("hung up")
    return (await links.accept(conn))[0]


async def go_on_accepting(line: Line) -> None:
    while True:
        try:
            (await accept(line)).close()
        except links.Resumed:
            line.resumed += 1
        except (wire.WireError, TimeoutError) as e:  # the latter: the line was cut in the middle
            line.refused.append(str(e))


async def both_ways(a: socket.socket, b: socket.socket, text: str) -> None:
    for x, y in ((a, b), (b, a)):
        await wire.asend(x, text=text)
        assert (await wire.arecv(y))["text"] == text


def test_either_end_has_another_address() -> None:
    async def test(line: Line) -> None:
        a, b = await pair(line)
        await both_ways(a, b, "before")
        line.address(HERE, "10.77.0.3")
        await both_ways(a, b, "the client moved")
        line.address(THERE, "10.77.0.4", there=True)
        links.addresses().write([(1, "10.77.0.4")])
        links.follow()
        await both_ways(a, b, "the server moved")
        assert line.resumed == 2
        a.close()
        with pytest.raises(EOFError):
            await wire.arecv(b)
        b.close()

    run(test)


def test_one_that_only_waits_goes_on_too_although_its_first_attempt_fails() -> None:
    """It has nothing to send, so it cannot notice by itself that what it waits for does not come."""

    async def test(line: Line) -> None:
        speaks, waits = [await pair(line) for _ in range(2)]
        line.to_hang_up = 1  # the attempt for the younger of them is the first
        line.address(HERE, "10.77.0.3")
        await wire.asend(waits[1], text="an answer")
        await both_ways(*speaks, "one goes on at once")
        assert not line.to_hang_up and line.resumed == 1
        assert (await asyncio.wait_for(wire.arecv(waits[0]), 30))["text"] == "an answer"
        for s in (*speaks, *waits):
            s.close()

    run(test)


def test_an_end_that_could_not_be_told_is_heard_when_the_other_side_wants_to_go_on() -> None:
    async def test(line: Line) -> None:
        ended, whole = [await pair(line) for _ in range(2)]
        line.ip("link", "set", "here", "down")
        ended[1].close()
        await asyncio.sleep(12)  # its relay has given up to hear that its end was heard
        line.address(HERE, "10.77.0.3")
        line.ip("link", "set", "here", "up")
        await both_ways(*whole, "the other goes on")
        with pytest.raises(EOFError):
            await wire.arecv(ended[0])
        assert "it goes on with a connection that is not here" in "".join(line.refused)
        for s in (ended[0], *whole):
            s.close()

    run(test)


class Between:
    """Passes on what the relays say; the first answer to one that wants to go on it keeps, as a line that is cut just then."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.asked = 0
        self.held: tuple[socket.socket, bytearray] | None = None
        line.ip("link", "set", "lo", "up", there=True)
        self.listener, *self._beyond = line.sockets
        self.listener.bind((THERE, 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        for s in line.sockets:
            s.setblocking(False)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self.listener)
            server = self._beyond.pop()
            self._line.sockets.append(client)
            await loop.sock_connect(server, (THERE, self._line.listener.getsockname()[1]))
            self._line.tasks.spawn(self._ask(client, server))
            self._line.tasks.spawn(self._answer(server, client))

    async def _ask(self, client: socket.socket, server: socket.socket) -> None:
        loop, said = asyncio.get_running_loop(), b""
        finished = False  # its handshake, whose last record is as long
        while data := await loop.sock_recv(client, 1 << 16):
            said += data
            while len(said) >= 5 and len(said) >= 5 + (n := int.from_bytes(said[3:5])):
                if n == _TO_GO_ON and finished:
                    self.asked += 1
                    if self.asked == 1:
                        self.held = client, bytearray()
                finished |= n == _TO_GO_ON
                await loop.sock_sendall(server, said[: 5 + n])
                said = said[5 + n :]

    async def _answer(self, server: socket.socket, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server, 1 << 16):
            if self.held and self.held[0] is client:
                self.held[1].extend(data)
            else:
                await loop.sock_sendall(client, data)


_TO_GO_ON = 4 + 16 + 16 + 1 + 16
"""Bytes of the TLS record with an R."""


def test_one_that_asks_and_hears_no_answer_asks_again_and_the_late_answer_does_no_harm() -> None:
    async def test(line: Line) -> None:
        between = Between(line)
        line.tasks.spawn(between.serve())
        a, b = await asyncio.gather(links.connect(1, THERE, between.port, lasting=True), accept(line))
        line.tasks.spawn(go_on_accepting(line))
        await both_ways(a, b, "before")
        assert not between.asked
        line.address(HERE, "10.77.0.3")
        await both_ways(a, b, "the second answer came")
        assert between.asked == line.resumed == 2
        assert between.held
        late, answer = between.held
        between.held = None
        assert answer
        await asyncio.get_running_loop().sock_sendall(late, answer)
        for n in range(20):
            await both_ways(a, b, f"{n} after the late answer")
        a.close()
        with pytest.raises(EOFError):
            await wire.arecv(b)
        b.close()

    run(test)


def test_what_other_programs_say_to_go_on_is_refused_and_harms_nobody() -> None:
    """They have a certificate of ours, but no connection: the worst that a node of the pool can do."""

    async def test(line: Line) -> None:
        a, b = await pair(line)
        port = line.listener.getsockname()[1]
        chance = random.Random(3)
        words = [b"", b"R" * 7, word("R", 32) + bytes(32), word("D", 0xFFFFFF) + bytes(5000)]
        words += [word(chance.choice("DEAHRON"), chance.randrange(40)) + chance.randbytes(60) for _ in range(40)]
        for alpn in ("mig-again", "mig-lasting"):
            for said in words:
                await asyncio.to_thread(say, port, alpn, said)
        assert "it goes on with a connection that is not here" in "".join(line.refused)
        await both_ways(a, b, "nothing has happened")
        a.close()
        b.close()

    run(test)


def word(kind: str, length: int) -> bytes:
    return struct.pack("<I", length | ord(kind) << 24)


def say(port: int, alpn: str, said: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(store.pem())
    context.set_alpn_protocols([alpn])
    with socket.create_connection((THERE, port), timeout=10) as plain, context.wrap_socket(plain) as s:
        assert s.selected_alpn_protocol() == alpn
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            s.sendall(said)
            s.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                s.recv(100)


async def pour(s: socket.socket, seed: int, end: asyncio.Event) -> tuple[int, str]:
    """Random bytes in random portions, until ``end``, and the end of the stream; how many, and their hash."""
    chance, loop, n, h = random.Random(seed), asyncio.get_running_loop(), 0, hashlib.sha256()
    block = chance.randbytes(1 << 20)
    while not end.is_set():
        piece = block[: chance.choice((1, 100, 5000, 70_000, 1 << 20))]
        h.update(piece)
        n += len(piece)
        await loop.sock_sendall(s, piece)
        if chance.random() < 0.05:
            await asyncio.sleep(chance.random() * 0.1)
    s.shutdown(socket.SHUT_WR)
    return n, h.hexdigest()


async def drain(s: socket.socket, seed: int) -> tuple[int, str]:
    chance, loop, n, h = random.Random(seed), asyncio.get_running_loop(), 0, hashlib.sha256()
    while data := await loop.sock_recv(s, 1 << 18):
        n += len(data)
        h.update(data)
        if chance.random() < 0.02:
            await asyncio.sleep(chance.random() * 0.1)
    return n, h.hexdigest()


@pytest.mark.parametrize("seed, changes", [(7, 6), pytest.param(8, 100, marks=[pytest.mark.long, pytest.mark.timeout(1000)])])
def test_streams_both_ways_arrive_whole_while_line_and_addresses_come_and_go(seed: int, changes: int) -> None:
    async def test(line: Line) -> None:
        pairs = [await pair(line) for _ in range(3)]
        end = asyncio.Event()
        said = [asyncio.ensure_future(pour(s, i, end)) for i, s in enumerate(s for p in pairs for s in p)]
        heard = [asyncio.ensure_future(drain(s, i)) for i, s in enumerate(s for a, b in pairs for s in (b, a))]
        chance, addr = random.Random(seed), HERE
        for i in range(changes):
            await asyncio.sleep(chance.random() * 2)
            match chance.randrange(3):
                case 0:
                    line.ip("link", "set", "here", "down")
                    await asyncio.sleep(chance.random() * 8)
                    line.ip("link", "set", "here", "up")
                case 1:
                    line.ip("link", "set", "there", "down", there=True)
                    await asyncio.sleep(chance.random())
                    line.ip("link", "set", "there", "up", there=True)
                case _:
                    new = f"10.77.0.{10 + i % 200}"
                    line.address(addr, new)
                    addr = new
                    await asyncio.sleep(chance.random() * 8)
        end.set()
        for x, y in zip(said, heard, strict=True):
            assert await x == await y
        assert line.resumed and not any("not here" in r for r in line.refused)
        for p in pairs:
            for s in p:
                s.close()

    run(test, 100 + 10 * changes)
