"""Pipes between home and a cell: real pipes, real processes, TCP over loopback; a 'move' swaps the cell's end for a new one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from mig.channels.cell_pipe import CellPipe, cell_pipe
from mig.channels.home_pipe import HomePipe, home_pipe
from mig.channels.relay import WINDOW
from tests.kernel.channels_lab import connection, in_loop, until


class Reader:
    """Reads a descriptor in the loop and keeps all."""

    def __init__(self, fd: int) -> None:
        self.fd, self.data, self.eof = fd, bytearray(), False
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._ready)

    def _ready(self) -> None:
        data = os.read(self.fd, 1 << 16)
        self.data += data
        if not data:
            self.eof = True
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            asyncio.get_running_loop().remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1


async def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe from the loop."""
    os.set_blocking(fd, False)
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            await asyncio.sleep(0.001)


def cell_end(home: HomePipe, direction: str, **more: Any) -> tuple[CellPipe, int]:
    """A cell's end attached to ``home`` and started; returns it and the guest's descriptor."""
    r, w = os.pipe()
    mine, guests = (w, r) if direction == "r" else (r, w)
    a, b = connection()
    cell = cell_pipe(mine, b, direction, **more)
    home.attach(a)
    cell.start()
    return cell, guests


def numbered(first: int, last: int) -> bytes:
    return b"".join(b"%08d\n" % i for i in range(first, last))


@in_loop
async def test_output_reaches_home_and_eof_travels() -> None:
    r, w = os.pipe()
    closed = asyncio.Event()
    home = home_pipe(w, "w", on_closed=closed.set)
    cell, guest = cell_end(home, "w")
    reader = Reader(r)
    data = os.urandom(3 << 20)
    await write_all(guest, data)
    os.close(guest)
    await closed.wait()
    await until(lambda: reader.eof)
    assert reader.data == data
    await cell.finish()
    await home.finished()
    cell.close()
    home.close()


@in_loop
async def test_input_reaches_the_guest_and_eof_travels() -> None:
    r, w = os.pipe()
    home = home_pipe(r, "r")
    cell, guest = cell_end(home, "r")
    reader = Reader(guest)
    data = os.urandom(3 << 20)
    await write_all(w, data)
    os.close(w)
    await until(lambda: reader.eof)
    assert reader.data == data
    cell.close()
    home.close()


@in_loop
async def test_a_slow_reader_at_home_blocks_the_guest_with_bounded_memory() -> None:
    r, w = os.pipe()
    home = home_pipe(w, "w")
    cell, guest = cell_end(home, "w")
    os.set_blocking(guest, False)
    sent = 0
    for _ in range(50):
        try:
            while True:
                sent += os.write(guest, bytes(65536))
        except BlockingIOError:
            await asyncio.sleep(0.01)
    # two pipes of 64 KiB, and a window on the way
    assert WINDOW <= sent <= WINDOW + (192 << 10)
    reader = Reader(r)
    os.close(guest)
    await until(lambda: reader.eof)
    assert len(reader.data) == sent
    cell.close()
    home.close()


@in_loop
async def test_sixty_hops_lose_and_double_nothing() -> None:
    """A guest echoes its input; every few steps it moves, with full pipes, every third move is given up."""
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    home_in, home_out = home_pipe(in_r, "r"), home_pipe(out_w, "w")
    ci, gi = cell_end(home_in, "r")
    co, go = cell_end(home_out, "w")
    reader = Reader(out_r)
    sent = numbered(0, 200000)
    feeder = asyncio.create_task(write_all(in_w, sent))
    got = 0
    for hop in range(60):
        os.set_blocking(gi, False)
        for _ in range(6):  # the guest runs for a while
            await asyncio.sleep(0.001)
            try:
                piece = os.read(gi, 2048 + 17 * hop)
            except BlockingIOError:
                continue
            got += len(piece)
            await write_all(go, piece)
        await home_in.hold()
        # ...and stands still
        await co.drain()
        rest = ci.rest()
        if hop % 3 == 2:
            ci.resume()
            home_in.resume()
            co.resume()
            continue
        old = (ci, co, gi, go)
        r, w = os.pipe()
        a, b = connection()
        ci, gi = cell_pipe(w, b, "r", prefix=rest), r
        home_in.attach(a)
        r, w = os.pipe()
        a, b = connection()
        co, go = cell_pipe(r, b, "w"), w
        await write_all(go, b"")  # the new guest may write before anybody is attached
        home_out.attach(a)
        ci.start()
        co.start()
        old[0].close()
        old[1].close()
        os.close(old[2])
        os.close(old[3])
    reader2 = Reader(gi)
    await feeder
    os.close(in_w)
    await until(lambda: reader2.eof)
    await write_all(go, bytes(reader2.data))
    await co.finish()
    await home_out.finished()
    await until(lambda: len(reader.data) >= len(sent))
    assert bytes(reader.data) == sent
    assert got < len(sent)  # the pipes were full throughout
    os.close(go)
    for x in (ci, co, home_in, home_out):
        x.close()
    reader.close()


@in_loop
async def test_output_of_the_old_epoch_comes_before_that_of_the_new() -> None:
    r, w = os.pipe()
    home = home_pipe(w, "w")
    first, guest1 = cell_end(home, "w")
    second, guest2 = cell_end(home, "w")  # attached although the first has not stopped
    await write_all(guest2, b"two")
    await asyncio.sleep(0.02)
    await write_all(guest1, b"one")
    reader = Reader(r)
    await until(lambda: reader.data == b"one")
    await first.drain()
    await until(lambda: reader.data == b"onetwo")
    for x in (first, second, home):
        x.close()
    reader.close()
    os.close(guest1)
    os.close(guest2)


@in_loop
async def test_the_guest_gets_sigpipe_when_homes_reader_goes() -> None:
    r, w = os.pipe()
    home = home_pipe(w, "w")
    pr, pw = os.pipe()
    a, b = connection()
    cell = cell_pipe(pr, b, "w")
    home.attach(a)
    yes = subprocess.Popen(["yes"], stdout=pw)
    os.close(pw)
    cell.start()
    head = subprocess.Popen(["head", "-1"], stdin=r, stdout=subprocess.PIPE)
    os.close(r)
    assert await asyncio.to_thread(head.communicate) == (b"y\n", None)
    assert await asyncio.to_thread(yes.wait) == -signal.SIGPIPE
    await cell.finish()
    await home.finished()
    cell.close()
    home.close()


@in_loop
async def test_a_guest_that_polls_sees_the_reader_go_without_writing() -> None:
    r, w = os.pipe()
    home = home_pipe(w, "w")
    cell, guest = cell_end(home, "w")
    os.close(r)
    broken = asyncio.Event()
    from mig.channels.relay import HangupWatch

    HangupWatch(guest, broken.set)
    await broken.wait()
    with pytest.raises(BrokenPipeError):
        os.write(guest, b"x")
    os.close(guest)
    cell.close()
    home.close()


@in_loop
async def test_no_reader_at_home_from_the_start_breaks_the_pipe_of_every_cell() -> None:
    r, w = os.pipe()
    os.close(r)
    home = home_pipe(w, "w")
    for _ in range(2):
        cell, guest = cell_end(home, "w")
        await until(lambda g=guest: _is_broken(g))
        cell.close()
        os.close(guest)
        home.detach()
    await home.finished()
    home.close()


def _is_broken(fd: int) -> bool:
    os.set_blocking(fd, False)
    try:
        os.write(fd, b"x")
    except BrokenPipeError:
        return True
    except BlockingIOError:
        pass
    return False


@in_loop
async def test_the_writer_at_home_gets_sigpipe_when_the_guest_closes_its_input() -> None:
    r, w = os.pipe()
    yes = subprocess.Popen(["yes"], stdout=w)
    os.close(w)
    closed = asyncio.Event()
    home = home_pipe(r, "r", on_closed=closed.set)
    cell, guest = cell_end(home, "r")
    await asyncio.sleep(0.02)
    os.close(guest)
    await closed.wait()
    assert await asyncio.to_thread(yes.wait) == -signal.SIGPIPE
    cell.close()
    home.close()


@in_loop
async def test_unread_input_is_handed_on_even_when_its_end_was_already_reached() -> None:
    r, w = os.pipe()
    home = home_pipe(r, "r")
    cell, guest = cell_end(home, "r")
    await write_all(w, b"hello\n")
    os.close(w)
    other = os.dup(guest)
    os.set_blocking(other, False)

    def arrived() -> bool:
        import fcntl
        import termios

        return fcntl.ioctl(guest, termios.FIONREAD, bytes(4)) != bytes(4)

    await until(arrived)
    for _ in range(3):  # a move given up puts it back
        await home.hold()
        assert cell.rest() == b"hello\n"
        cell.resume()
        home.resume()
    await home.hold()
    rest = cell.rest()
    cell2, guest2 = cell_end(home, "r", prefix=rest)
    cell.close()
    reader = Reader(guest2)
    await until(lambda: reader.eof)
    assert reader.data == b"hello\n"
    cell2.close()
    home.close()
    os.close(guest)
    os.close(other)


@in_loop
async def test_shared_input_is_taken_only_as_the_guest_reads_it() -> None:
    """`while read line; do job; done < file-like pipe`: the job reads one line, the shell keeps the rest."""
    r, w = os.pipe()
    await write_all(w, b"one\ntwo\nthree\n")
    shell = os.dup(r)
    home = home_pipe(r, "r", shared=True)
    pr, pw = os.pipe()
    a, b = connection()
    job = subprocess.Popen(["bash", "-c", "sleep 0.1; read x; echo $x"], stdin=pr, stdout=subprocess.PIPE)
    os.close(pr)
    cell = cell_pipe(pw, b, "r", shared=True, pids=lambda: _family(job.pid))
    home.attach(a)
    cell.start()
    assert await asyncio.to_thread(job.communicate) == (b"one\n", None)
    assert os.read(shell, 100) == b"two\nthree\n"
    cell.close()
    home.close()
    os.close(shell)
    os.close(w)


@in_loop
async def test_shared_input_reaches_a_guest_that_polls_and_its_end_too() -> None:
    program = (
        "import select,os\nout=b''\nwhile 1:\n select.select([0],[],[])\n d=os.read(0,3)\n out+=d\n if not d: break\nprint(out.decode())"
    )
    r, w = os.pipe()
    home = home_pipe(r, "r", shared=True)
    pr, pw = os.pipe()
    a, b = connection()
    job = subprocess.Popen([sys.executable, "-S", "-c", program], stdin=pr, stdout=subprocess.PIPE)
    os.close(pr)
    cell = cell_pipe(pw, b, "r", shared=True, pids=lambda: [job.pid])
    home.attach(a)
    cell.start()
    await write_all(w, b"abcdefgh")
    os.close(w)
    assert await asyncio.to_thread(job.communicate) == (b"abcdefgh\n", None)
    cell.close()
    home.close()


@in_loop
async def test_a_lost_connection_is_reported_and_finished_returns() -> None:
    r, w = os.pipe()
    lost: list[Exception] = []
    home = home_pipe(w, "w", on_lost=lost.append)
    a, b = connection()
    home.attach(a)
    b.close()
    await home.finished()
    assert len(lost) == 1 and isinstance(lost[0], ConnectionError)
    home.close()
    os.close(r)


@in_loop
async def test_nonsense_on_the_connection_is_a_lost_connection() -> None:
    r, w = os.pipe()
    lost: list[Exception] = []
    home = home_pipe(r, "r", on_lost=lost.append)
    a, b = connection()
    home.attach(a)
    b.sendall(b"\xff" * 20)
    await until(lambda: lost)
    with pytest.raises(ConnectionError):
        await home.hold()
    b.close()
    home.close()
    os.close(w)


def _family(pid: int) -> list[int]:
    found = [pid]
    for p in found:
        with open(f"/proc/{p}/task/{p}/children") as f:
            found += map(int, f.read().split())
    return found
