"""A program that changes its address space while its pages are still arriving reads only what it wrote: the real pager, the real kernel.

No CRIU and no network here: the memory of a running process is taken away from it, under its own feet, and the pager gives it back page by
page from a copy.  This is repeated with the same process for as long as the test takes.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mig.kernel import libc, pagemap, uffd
from mig.kernel.ptrace import NR, Tracee
from mig.memory import frames, inject, written
from mig.memory.eventlog import EventLog
from mig.memory.frames import PAGE, Kind
from mig.memory.hide import read_areas
from mig.memory.pager import Pager
from mig.memory.ranges import subtract
from tests.guests.build import Guests, build
from tests.kernel.test_memory_tracker import Run, run

__all__ = ["run"]

NR.setdefault("madvise", 28)
MADV_DONTNEED = 4
EVENTS = uffd.UFFD_FEATURE_EVENT_FORK | uffd.UFFD_FEATURE_EVENT_REMAP | uffd.UFFD_FEATURE_EVENT_REMOVE | uffd.UFFD_FEATURE_EVENT_UNMAP


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return build(tmp_path_factory.mktemp("guests"))


def take_memory(pid: int) -> tuple[int, dict[int, bytes], list[tuple[int, int]]]:
    """Stop the process, copy its private memory, discard it, register it for missing pages; returns the userfaultfd, the copy by page
    and the ranges.  The process runs on, without its memory."""
    threads: dict[int, Tracee] = {}
    try:
        inject._stop_all(pid, threads, 10.0)
        ranges = [(a.mapping.start, a.mapping.end) for a in read_areas(pid) if a.hidden]
        t = next(iter(threads.values()))
        t.begin()
        inner = t.syscall("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK)
        fd = libc.pidfd_getfd(pid, inner)
        t.syscall("close", inner)
        maps = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        copy: dict[int, bytes] = {}
        for start, end in ranges:
            for a, b in pagemap.contents(maps, start, end):
                data = libc.process_vm_readv(pid, a, b - a)
                copy.update({a + at: data[at : at + PAGE] for at in range(0, len(data), PAGE)})
            t.syscall("madvise", start, end - start, MADV_DONTNEED)
        os.close(maps)
        t.undo()
        written.enable(fd, EVENTS)
        for start, end in ranges:
            assert written.register(fd, [(start, end)], uffd.UFFDIO_REGISTER_MODE_MISSING)
        return fd, copy, ranges
    finally:
        for t in threads.values():
            t.detach()


class Source:
    """Sends the copy: what is demanded at once, the rest in random order, slowly enough that the process meets many missing pages."""

    def __init__(
        self, copy: dict[int, bytes], ranges: list[tuple[int, int]], demand: socket.socket, push: socket.socket, seconds: float
    ) -> None:
        self.ranges = ranges
        self.copy, self.demand, self.push, self.seconds = copy, demand, push, seconds
        self.threads = [threading.Thread(target=t, daemon=True) for t in (self._answer, self._push)]
        for t in self.threads:
            t.start()

    def _answer(self) -> None:
        with suppress(BrokenPipeError):  # the pager has all that it needs: who asked has ended
            while len(b := self.demand.recv(frames.REQUEST.size, socket.MSG_WAITALL)) == frames.REQUEST.size:
                addr, index = frames.REQUEST.unpack(b)
                self.demand.sendall(self._frame(index, addr))

    def _frame(self, index: int, addr: int) -> bytes:
        if addr not in self.copy:
            return frames.note(Kind.ZERO, index, addr, addr + PAGE)
        return frames.data(Kind.DATA, index, addr, PAGE) + self.copy[addr]

    def _push(self) -> None:
        todo = list(self.copy)
        for start, end in subtract(self.ranges, [(a, a + PAGE) for a in todo]):
            self.push.sendall(frames.note(Kind.ZERO, 0, start, end))
        random.shuffle(todo)
        began = time.monotonic()
        for n, addr in enumerate(todo):
            self.push.sendall(self._frame(0, addr))
            if n % 16 == 0 and (ahead := n / len(todo) * self.seconds - (time.monotonic() - began)) > 0:
                time.sleep(ahead)
        self.push.sendall(frames.note(Kind.ALL))


def give_back(pid: int, seconds: float, at: Path) -> dict[str, int]:
    """One life of a pager: take the memory, serve until all of it has arrived; returns its counts."""
    fd, copy, ranges = take_memory(pid)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at))
        listener.listen(1)
        pairs = [socket.socketpair() for _ in range(2)]
        said: list[str] = []
        pager = Pager(listener, lambda op, **m: said.append(op), lambda: said.append("broken"), EventLog())
        pager.guest.layout([(0, pid, ranges)])
        pager.guest.adopt(fd, pid)
        source = Source(copy, ranges, pairs[0][1], pairs[1][1], seconds)
        pager.connected(pairs[0][0], pairs[1][0])
        pager.start_push()
        while not pager.finished():
            pager.step([f for f, _ in pager.poll.poll(1.0 if pager.idle else 0)])
        pager.finish()
        assert "broken" not in said
        for a, b in pairs:
            for s in (a, b):
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError as e:
                    assert e.errno in (errno.ENOTCONN, errno.EBADF)
        for t in source.threads:
            t.join()
        for a, b in pairs:
            a.close()
            b.close()
        pager.poll.close()
    at.unlink()
    return pager.counts


@pytest.mark.parametrize("children", [True, False])
def test_churn_while_pages_arrive(guests: Guests, run: Callable[..., Run], tmp_path: Path, children: bool) -> None:
    g = run(guests.churn, "-m", 8, "-t", 4, "-b", 4, *(() if children else ("-n",)))
    g.line()
    until = time.monotonic() + float(os.environ.get("CHURN_SECONDS", "4"))
    turns = 0
    while time.monotonic() < until:
        counts = give_back(g.pid, 0.5, tmp_path / "socket")
        assert g.process.poll() is None, g.line()
        turns += 1
    said = g.ask("all")
    assert said.endswith("wrong=0"), said
    print(turns, counts, g.ask("count"))
