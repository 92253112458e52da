"""Calls that a real CRIU dump interrupts go on when the process stays at home."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mig.deputy import mend
from mig.deputy.mend import Call
from mig.kernel import procfs
from mig.kernel.ptrace import NO_SYSCALL, U64
from tests.kernel.deputy_lab import NANOSLEEP, THREADS, Start, Target, built, criu_dump, start, until

__all__ = ["built", "start"]

HEAD = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
class T(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
before = time.monotonic()
def told(r): print(r, ctypes.get_errno() if r < 0 else 0, flush=True)
"""
CLOCK = HEAD + "t, rem = T(1, 0), T()\nprint('up', flush=True)\ntold(libc.syscall(230, 1, 0, ctypes.byref(t), ctypes.byref(rem)))"
POLL = """
class P(ctypes.Structure): _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]
p = P(0, 1, 0)
print("up", flush=True)
told(libc.poll(ctypes.byref(p), 1, %d))
"""
FUTEX = """
word, now = ctypes.c_int(0), time.monotonic()
end = T(int(now) + 1, int(now % 1 * 1e9))
print("up", flush=True)
r = libc.syscall(202, ctypes.byref(word), 9 | 128, 0, ctypes.byref(end), 0, 0xffffffff)  # FUTEX_WAIT_BITSET, until a point in time
told(r)
"""


def dump_and_stay(t: Target, at: Path, nr: int) -> list[Call]:
    until(lambda: (c := procfs.syscall(t.pid, t.pid)) is not None and c.nr == nr, "in the call")
    t.group.freeze()
    calls = mend.interrupted([(t.pid, x) for x in procfs.threads(t.pid)])
    assert [(c.tid, c.nr) for c in calls] == [(t.pid, nr)]
    criu_dump(t, at)
    mend.mend_running(calls, t.group.thaw)
    assert not t.group.is_frozen() and procfs.status(t.pid).tracer == 0
    return calls


def test_nanosleep_sleeps_on_for_what_is_left(start: Start, tmp_path: Path) -> None:
    t = start(NANOSLEEP, "1.5")
    dump_and_stay(t, tmp_path / "img", 230 if procfs_call(t) == 230 else 35)
    result, error, seconds = t.line().split()
    assert (result, error) == ("0", "0") and float(seconds) >= 1.4


def procfs_call(t: Target) -> int:
    """glibc's nanosleep() is clock_nanosleep by now; older ones call nanosleep."""
    until(lambda: (c := procfs.syscall(t.pid, t.pid)) is not None and c.nr in (35, 230), "asleep")
    call = procfs.syscall(t.pid, t.pid)
    assert call is not None
    return call.nr


def test_clock_nanosleep(start: Start, tmp_path: Path) -> None:
    t = start(CLOCK)
    dump_and_stay(t, tmp_path / "img", 230)
    assert t.line() == "0 0"


@pytest.mark.parametrize("milliseconds", [-1, 60000])
def test_poll_waits_on(start: Start, tmp_path: Path, milliseconds: int) -> None:
    r, w = os.pipe()
    t = start(HEAD + POLL % milliseconds, stdin=r)
    os.close(r)
    dump_and_stay(t, tmp_path / "img", 7)
    os.write(w, b"x")
    os.close(w)
    assert t.line() == "1 0"


def test_a_futex_wait_until_a_point_in_time(start: Start, tmp_path: Path) -> None:
    t = start(HEAD + FUTEX)
    dump_and_stay(t, tmp_path / "img", 202)
    assert t.line() == "-1 110"  # ETIMEDOUT, and not EINTR


def test_without_mending_the_call_is_broken_off(start: Start, tmp_path: Path) -> None:
    t = start(CLOCK)
    until(lambda: procfs_call(t) == 230, "asleep")
    t.group.freeze()
    criu_dump(t, tmp_path / "img")
    t.group.thaw()
    assert t.line() == "-1 4"


def test_threads_at_work_need_no_mending(start: Start) -> None:
    t = start(THREADS)
    until(lambda: len(procfs.threads(t.pid)) == 5, "its threads")
    t.group.freeze()
    calls = mend.interrupted([(t.pid, x) for x in procfs.threads(t.pid)])
    mend.mend_running(calls, t.group.thaw)  # nothing was dumped, so none stands behind an EINTR
    used = procfs.stat(t.pid)
    until(lambda: procfs.stat(t.pid).utime > used.utime, "its threads work")


def test_a_process_that_ended_meanwhile_is_left_out(start: Start) -> None:
    t = start(NANOSLEEP, "60")
    until(lambda: procfs.state(t.pid) == "S", "asleep")
    t.group.freeze()
    calls = mend.interrupted([(t.pid, t.pid), (2**22 - 1, 2**22 - 1)])
    assert len(calls) == 1
    os.kill(t.pid, signal.SIGKILL)
    assert t.process.wait(15) == -signal.SIGKILL
    mend.mend_running(calls, t.group.thaw)
    assert not t.group.is_frozen()


def test_which_registers_change() -> None:
    eintr = -4 & U64
    sleep, no_rem = Call(1, 1, 35, (10, 20, 0, 0, 0, 0)), Call(1, 1, 35, (10, 0, 0, 0, 0, 0))
    clock, poll = Call(1, 1, 230, (1, 0, 10, 20, 0, 0)), Call(1, 1, 7, (1, 2, 3, 0, 0, 0))
    assert mend.again(sleep, eintr, 102) == {"ax": 35, "orig_ax": NO_SYSCALL, "ip": 100, "di": 20}
    assert mend.again(no_rem, eintr, 102) == {"ax": 35, "orig_ax": NO_SYSCALL, "ip": 100}
    assert mend.again(clock, eintr, 102) == {"ax": 230, "orig_ax": NO_SYSCALL, "ip": 100, "dx": 20}
    assert mend.again(poll, eintr, 102) == {"ax": 7, "orig_ax": NO_SYSCALL, "ip": 100}
    assert mend.again(poll, 0, 102) is None
