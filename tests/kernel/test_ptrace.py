"""Calls injected into a real process, and the process none the wiser."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess

import pytest

from mig.kernel import libc, procfs
from mig.kernel.ptrace import InjectedError, Tracee, TraceeDied, find_syscall
from mig.memory import inject
from tests.kernel.deputy_lab import NANOSLEEP, SLEEPER, Start, Target, asleep, built, start, until

__all__ = ["built", "start"]

READ = "import os; print('up', flush=True); print(os.read(0, 100), flush=True)"
POLL = """
import ctypes, time
print("up", flush=True)
before = time.monotonic()
r = ctypes.CDLL(None, use_errno=True).poll(None, 0, 1000)
print(r, ctypes.get_errno() if r else 0, round(time.monotonic() - before, 1), flush=True)
"""


HANDLES = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
print("up", flush=True)
time.sleep(1000)
"""


def tracee(t: Target) -> Tracee:
    until(lambda: procfs.state(t.pid) == "S", "waiting in its call")
    return Tracee(t.pid)


def inject_and_undo(t: Target) -> None:
    p = tracee(t)
    p.stop()
    p.begin()
    assert p.syscall("getpid") == t.pid
    at = p.syscall("mmap", 0, 4096, 3, 0x22, -1, 0)
    p.syscall("socketpair", socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0, at)
    for fd in struct.unpack("ii", libc.process_vm_readv(t.pid, at, 8)):
        p.syscall("close", fd)
    p.syscall("munmap", at, 4096)
    p.undo()
    p.detach()


def test_an_interrupted_sleep_goes_on_with_what_was_left(start: Start) -> None:
    t = start(NANOSLEEP, "1")
    inject_and_undo(t)
    assert t.line() == "0 0 1.0"


def test_an_interrupted_poll_goes_on_with_what_was_left(start: Start) -> None:
    t = start(POLL)
    inject_and_undo(t)
    assert t.line() == "0 0 1.0"


def test_an_interrupted_read_goes_on(start: Start) -> None:
    t = start(READ, stdin=subprocess.PIPE)
    inject_and_undo(t)
    assert t.process.stdin is not None
    t.process.stdin.write(b"late")
    t.process.stdin.flush()
    assert t.line() == "b'late'"


def test_nothing_of_the_process_has_changed(start: Start) -> None:
    t = start(SLEEPER)
    until(lambda: procfs.state(t.pid) == "S", "waiting")
    before, regs = t.inner(), None
    for _ in range(2):
        p = tracee(t)
        p.stop()
        assert regs is None or bytes(p.getregs()) == bytes(regs)
        regs = p.getregs()
        p.detach()
        inject_and_undo(t)
    assert t.inner() == before


def test_a_frozen_process_is_caught_without_a_thaw(start: Start) -> None:
    t = start(NANOSLEEP, "1")
    asleep(t)
    t.group.freeze()
    p = Tracee(t.pid)
    p.stop()
    assert t.group.is_frozen()
    p.begin()
    p.park()
    t.group.thaw()
    assert p.syscall("getpid") == t.pid
    p.undo()
    t.group.freeze()
    p.detach()
    assert t.group.is_frozen() and procfs.status(t.pid).tracer == 0
    t.group.thaw()
    assert t.line() == "0 0 1.0"


def test_a_parked_process_sleeps_when_its_tracer_dies(start: Start) -> None:
    t = start("import os; print('up', flush=True)\nwhile True: os.getpid()")
    child = os.fork()
    if not child:
        p = Tracee(t.pid)
        p.stop()
        p.begin()
        p.park()
        os._exit(0)
    os.waitpid(child, 0)
    until(lambda: procfs.status(t.pid).tracer == 0, "the kernel lets it go")

    def pausing() -> bool:
        call = procfs.syscall(t.pid, t.pid)
        return call is not None and call.nr == 34

    until(pausing, "parked in pause()")
    os.kill(t.pid, signal.SIGTERM)
    os.kill(t.pid, signal.SIGSTOP)
    until(lambda: procfs.state(t.pid) == "T", "stopped")
    os.kill(t.pid, signal.SIGCONT)
    until(pausing, "in pause() again")


def test_errors_of_an_injected_call_are_told_and_harmless(start: Start) -> None:
    t = start(NANOSLEEP, "1")
    p = tracee(t)
    p.stop()
    p.begin()
    with pytest.raises(InjectedError) as e:
        p.syscall("close", 12345)
    assert e.value.errno == errno.EBADF
    p.undo()
    p.detach()
    assert t.line() == "0 0 1.0"


def test_pending_and_arriving_signals_wait_until_we_have_gone(start: Start) -> None:
    code = "import signal\nsignal.signal(10, lambda *a: None)\nprint('up', flush=True)\nsignal.pause()\nprint('handled', flush=True)"
    t = start(code)
    p = tracee(t)
    p.stop()
    p.begin()
    os.kill(t.pid, signal.SIGUSR1)
    assert p.syscall("getpid") == t.pid
    p.undo()
    p.detach()
    assert t.line() == "handled"


def test_a_signal_between_the_seizing_and_the_stop(start: Start) -> None:
    """Its stop takes the place of ours: children that end send SIGCHLD at any time."""
    t = start(HANDLES)
    p = tracee(t)
    os.kill(t.pid, signal.SIGUSR1)
    until(lambda: procfs.state(t.pid) == "t", "stopped")
    with inject._patience(5):
        p.stop()
    p.detach()
    assert t.line() == "heard"


def test_a_stop_signal_in_our_hands_counts_afterwards(start: Start) -> None:
    t = start(SLEEPER)
    p = tracee(t)
    p.stop()
    p.begin()
    os.kill(t.pid, signal.SIGSTOP)
    for _ in range(3):
        p.syscall("getpid")
    p.undo()
    p.detach()
    until(lambda: procfs.state(t.pid) == "T", "stopped")


def test_a_tracee_that_is_killed_says_so(start: Start) -> None:
    t = start(SLEEPER)
    p = tracee(t)
    p.stop()
    p.begin()
    os.kill(t.pid, signal.SIGKILL)
    with pytest.raises((TraceeDied, ProcessLookupError)):
        p.syscall("getpid")
        p.syscall("getpid")


def test_the_syscall_instruction_is_the_vdso_s(start: Start) -> None:
    t = start(SLEEPER)
    (vdso,) = [m for m in procfs.maps(t.pid) if m.path == "[vdso]"]
    assert vdso.start <= find_syscall(t.pid) < vdso.end
    assert libc.process_vm_readv(t.pid, find_syscall(t.pid), 2) == b"\x0f\x05"


def test_another_process_s_memory_and_descriptors(start: Start) -> None:
    t = start(SLEEPER)
    stack = next(m for m in procfs.maps(t.pid) if m.path == "[stack]")
    old = libc.process_vm_readv(t.pid, stack.end - 16, 16)
    libc.process_vm_writev(t.pid, stack.end - 16, b"0123456789abcdef")
    assert libc.process_vm_readv(t.pid, stack.end - 16, 16) == b"0123456789abcdef"
    libc.process_vm_writev(t.pid, stack.end - 16, old)
    with pytest.raises(OSError, match="8 of 16 bytes"):
        libc.process_vm_readv(t.pid, stack.end - 8, 16)
    fd = libc.pidfd_getfd(t.pid, 1)
    os.write(fd, b"from us\n")
    os.close(fd)
    assert t.line() == "from us"
    with pytest.raises(OSError, match="pidfd_getfd"):
        libc.pidfd_getfd(t.pid, 1000)
