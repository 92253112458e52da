"""Input that others read too, and a guest that never waits for it: real pipes and ptys, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterable

from mig.channels import preview
from mig.channels.cell_pipe import CellPipe, cell_pipe
from mig.channels.home_pipe import HomePipe, home_pipe
from mig.channels.tty_modes import unread
from tests.kernel.channels_lab import connection, in_loop, until
from tests.kernel.test_channels_terminal import Stage

POLLER = """
import os, select, time
while True:
    while not select.select([0], [], [], 0)[0]:
        time.sleep(0.002)
    piece = os.read(0, SIZE)
    os.write(1, piece)
    if not piece or piece.endswith(b"quit\\n"):
        break
"""


def poller(stdin: int, size: int = 100) -> subprocess.Popen[bytes]:
    program = POLLER.replace("SIZE", str(size))
    return subprocess.Popen([sys.executable, "-S", "-c", program], stdin=stdin, stdout=subprocess.PIPE)


def pass_all(home: HomePipe, prefix: bytes = b"", pids: Iterable[int] = ()) -> tuple[CellPipe, int]:
    """A new cell attached to ``home`` and started; returns it and the guest's descriptor."""
    r, w = os.pipe()
    a, b = connection()
    cell = cell_pipe(w, b, "r", prefix=prefix, shared=True, pids=lambda: pids)
    home.attach(a)
    cell.start()
    return cell, r


async def holds(fd: int, n: int) -> None:
    """Wait until a pipe or terminal has ``n`` unread bytes."""
    await until(lambda: unread(fd) == n)


async def some(fd: int) -> None:
    """Wait until a pipe has unread bytes."""
    await until(lambda: unread(fd))


@in_loop
async def test_a_guest_that_polls_gets_its_input_and_its_end() -> None:
    r, w = os.pipe()
    home = home_pipe(r, "r", shared=True)
    cell, guest = pass_all(home)
    job = poller(guest, 7)
    os.close(guest)
    os.write(w, b"hello\nworld\n")
    assert job.stdout is not None
    assert await asyncio.to_thread(job.stdout.read, 12) == b"hello\nworld\n"
    await holds(r, 0)  # and it is taken from home's pipe
    data = b"".join(b"%05d\n" % i for i in range(1000))  # two previews
    os.write(w, data)
    os.close(w)
    assert await asyncio.to_thread(job.communicate) == (data, None)
    cell.close()
    home.close()


@in_loop
async def test_a_guest_that_never_reads_leaves_every_byte_to_the_next_reader() -> None:
    r, w = os.pipe()
    shell = os.dup(r)
    home = home_pipe(r, "r", shared=True)
    cell, guest = pass_all(home)
    os.write(w, b"one\ntwo\n")
    await holds(guest, 8)
    rest = b""
    for hop in range(4):
        await home.hold()
        await cell.drain()
        rest = cell.rest()
        assert rest == b"" and unread(guest) == 0
        if hop % 2:
            cell.resume()
            home.resume()
        else:
            old = guest
            first = cell
            cell, guest = pass_all(home, rest)
            first.close()
            os.close(old)
        await holds(guest, 8)
    os.close(guest)
    await cell.finish()
    await home.finished()
    os.write(w, b"three\n")
    os.close(w)
    assert await asyncio.to_thread(os.read, shell, 100) == b"one\ntwo\nthree\n"
    cell.close()
    home.close()
    os.close(shell)


@in_loop
async def test_what_it_has_read_of_a_preview_when_it_moves_or_ends_is_gone_at_home_and_no_more() -> None:
    r, w = os.pipe()
    shell = os.dup(r)
    home = home_pipe(r, "r", shared=True)
    cell, guest = pass_all(home)
    os.write(w, b"0123456789")
    for n in range(3):
        await holds(guest, 10 - n)
        assert os.read(guest, 1) == b"%d" % n
        await home.hold()
        await cell.drain()
        assert cell.rest() == b"" and unread(shell) == 10 - n - 1
        old, first = guest, cell
        cell, guest = pass_all(home)
        first.close()
        os.close(old)
    await holds(guest, 7)
    assert os.read(guest, 2) == b"34"
    os.close(guest)
    await until(lambda: home.closed)
    assert os.read(shell, 100) == b"56789"
    await cell.finish()
    for x in (cell, home):
        x.close()
    os.close(shell)
    os.close(w)


@in_loop
async def test_a_preview_is_withdrawn_when_another_reader_takes_it() -> None:
    r, w = os.pipe()
    shell = os.dup(r)
    home = home_pipe(r, "r", shared=True)
    cell, guest = pass_all(home)
    os.write(w, b"one\ntwo\n")
    await holds(guest, 8)
    assert os.read(shell, 4) == b"one\n"
    await until(lambda: unread(guest) != 8)
    await holds(guest, 4)  # a new preview, of what is left
    assert os.read(guest, 100) == b"two\n"
    await holds(shell, 0)
    for x in (cell, home):
        x.close()
    for fd in (guest, shell, w):
        os.close(fd)


@in_loop
async def test_a_guest_that_waits_after_a_preview_reads_on_at_full_speed() -> None:
    r, w = os.pipe()
    home = home_pipe(r, "r", shared=True)
    pids: list[int] = []
    cell, guest = pass_all(home, pids=pids)
    os.write(w, b"first\n")
    await holds(guest, 6)
    job = subprocess.Popen(["cat"], stdin=guest, stdout=subprocess.PIPE)
    pids.append(job.pid)
    os.close(guest)
    data = os.urandom(1 << 20)

    def feed() -> None:
        with open(w, "wb") as f:
            f.write(data)

    feeder = asyncio.create_task(asyncio.to_thread(feed))
    assert await asyncio.to_thread(job.communicate) == (b"first\n" + data, None)
    await feeder
    cell.close()
    home.close()


@in_loop
async def test_sixty_hops_of_a_guest_that_polls_lose_and_double_nothing() -> None:
    r, w = os.pipe()
    home = home_pipe(r, "r", shared=True)
    cell, guest = pass_all(home)
    sent = b"".join(b"%06d\n" % i for i in range(8000))
    os.write(w, sent)
    got = bytearray()
    for hop in range(60):
        if hop % 5 == 0:
            await some(guest)  # patience ends
        for _ in range(4):
            await asyncio.sleep(0.003)
            if n := min(unread(guest), 11 + hop * 3):
                got += os.read(guest, n)
        await home.hold()
        if unread(guest) and hop % 7 == 0:
            got += os.read(guest, 5)  # it still runs
        await cell.drain()
        rest = cell.rest()
        if hop % 3 == 2:
            cell.resume()
            home.resume()
            continue
        old, first = guest, cell
        cell, guest = pass_all(home, rest)
        first.close()
        os.close(old)
    moved = len(got)
    while len(got) < len(sent):
        await some(guest)
        got += os.read(guest, 1 << 16)
    assert bytes(got) == sent and 0 < moved < len(sent)
    for x in (cell, home):
        x.close()
    os.close(guest)
    os.close(w)


def test_a_preview_fits_into_an_empty_pipe_of_one_page() -> None:
    assert preview.SIZE <= 4096


@in_loop
async def test_a_guest_that_polls_a_terminal_gets_its_line_across_a_move() -> None:
    async with Stage(sys.executable, "-S", "-c", POLLER.replace("SIZE", "100")) as stage:
        stage.type(b"first\n")
        await stage.see(b"first\r\n")  # the echo
        await stage.see(b"first\r\n")
        await stage.move()
        stage.type(b"quit\n")
        await stage.see(b"quit\r\n")
        await stage.see(b"quit\r\n")
        assert await stage.end() == 0


@in_loop
async def test_a_guest_that_never_reads_the_terminal_leaves_the_type_ahead_to_the_shell() -> None:
    async with Stage("sleep", "1000") as stage:
        stage.type(b"ls\n")
        await holds(stage.slave, 3)
        stage.type(b"pwd\n")
        await stage.see(b"pwd\r\n")
        await stage.home.sync()  # as when it stops
        assert unread(stage.slave) == 0
        assert os.read(stage.home_slave, 100) == b"ls\n"
        await holds(stage.slave, 4)
        os.kill(stage.guest.pid, signal.SIGKILL)
        assert await stage.end() == -signal.SIGKILL
        assert os.read(stage.home_slave, 100) == b"pwd\n"


@in_loop
async def test_a_key_that_another_process_of_the_job_may_read_is_not_given_to_a_guest_that_does_not_wait() -> None:
    async with Stage("sleep", "1000") as stage:  # as `guest | less`
        stage.tell(b"o\n")
        stage.type(b"q\n")
        await asyncio.sleep(1.5)
        assert unread(stage.slave) == 0 and unread(stage.home_slave) == 2
        stage.tell(b"o\n")
        await holds(stage.slave, 2)
