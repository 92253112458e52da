"""Whether a process waits to read a pipe or terminal is seen from outside, whichever way it waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mig.channels import demand
from mig.channels.demand import SOME, Demand

WAITS = {
    "os.read(0, 1234)": 1234,
    "os.readv(0, [bytearray(5)])": SOME,
    "import select; p = select.poll(); p.register(0, select.POLLIN); p.poll()": SOME,
    "import select; select.select([5, 0], [], [])": SOME,
    "import select; e = select.epoll(); e.register(0, select.EPOLLIN); e.poll()": SOME,
    "import threading; threading.Thread(target=os.read, args=(0, 77)).start(); time.sleep(100)": 77,
    "os.read(os.dup2(0, 9), 55)": 55,
    "os.set_blocking(0, False); time.sleep(100)": SOME,
}
OTHERS = {
    "time.sleep(100)",
    "os.read(5, 100)",
    "import select; p = select.poll(); p.register(0, 0); p.register(5, select.POLLIN); p.poll()",
    "import select; select.select([5], [], [0])",
    "import select; e = select.epoll(); e.register(0, 0); e.poll()",
}


@contextmanager
def process(program: str) -> Iterator[tuple[int, int]]:
    """A program whose descriptor 0 is a pipe and whose 5 is another; gives its pid and the first pipe's inode number."""
    r, w = os.pipe()
    other_r, other_w = os.pipe()
    source = f"import os, sys, time\nos.dup2({other_r}, 5)\nos.write(1, b'x')\n{program}"
    p = subprocess.Popen([sys.executable, "-S", "-c", source], stdin=r, stdout=subprocess.PIPE, pass_fds=[other_r])
    assert p.stdout is not None
    p.stdout.read(1)
    try:
        yield p.pid, os.fstat(r).st_ino
    finally:
        p.kill()
        p.wait()
        p.stdout.close()
        for fd in (r, w, other_r, other_w):
            os.close(fd)


def settled(pid: int, inode: int) -> list[Demand]:
    """What is seen once every thread of the program sleeps."""
    while any(open_and_read(f"/proc/{pid}/task/{t}/syscall").startswith("running") for t in os.listdir(f"/proc/{pid}/task")):
        time.sleep(0.001)
    time.sleep(0.02)  # it may have slept on its way, to import something
    return list(demand.waiting([pid], demand.pipe(inode)))


def open_and_read(path: str) -> str:
    with open(path) as f:
        return f.read()


@pytest.mark.parametrize("program", WAITS)
def test_a_wait_is_seen(program: str) -> None:
    with process(program) as (pid, inode):
        deadline = time.monotonic() + 10
        while not (found := settled(pid, inode)) and time.monotonic() < deadline:
            pass
        assert [d.count for d in found] == [WAITS[program]]


@pytest.mark.parametrize("program", sorted(OTHERS))
def test_other_waits_are_not(program: str) -> None:
    with process(program) as (pid, inode):
        time.sleep(0.05)
        assert settled(pid, inode) == []


def test_one_wait_is_told_from_the_next() -> None:
    r, w = os.pipe()
    p = subprocess.Popen(["cat"], stdin=r, stdout=subprocess.DEVNULL)
    os.close(r)
    inode = os.fstat(w).st_ino
    seen: set[Demand] = set()
    for _ in range(3):
        while not (found := list(demand.waiting([p.pid], demand.pipe(inode)))) or found[0] in seen:
            time.sleep(0.001)
        seen.add(found[0])
        os.write(w, b"x")
    os.close(w)
    p.wait()


def test_a_process_that_is_gone_waits_for_nothing() -> None:
    p = subprocess.Popen(["true"])
    p.wait()
    assert list(demand.waiting([p.pid], demand.pipe(1))) == []
