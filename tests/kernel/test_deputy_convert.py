"""A real process becomes its deputy: what stays, what its parent and its neighbours see, and what a failure leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mig.deputy import link
from mig.deputy.convert import DeputyError, convert, convert_in_helper, retake_link
from mig.deputy.helper import Helper
from mig.deputy.repair import journal_path
from mig.errors import MigError
from mig.kernel import libc, procfs
from mig.kernel.cgroup import Cgroup
from tests.kernel.deputy_lab import NANOSLEEP, SLEEPER, THREADS, Start, Target, agent, asleep, built, criu_dump, ended, slept, start, until

__all__ = ["built", "start"]

STEPS = ("caught", "mapped", "link", "binary", "descriptors", "held", "ready")
TREE = (
    "import os,time\nfor i in range(2):\n if os.fork() == 0:\n  if i: os.fork()\n  time.sleep(1000)\n"
    "print('up', flush=True)\ntime.sleep(1000)"
)
SECCOMP = """
import ctypes, struct, time
libc = ctypes.CDLL(None, use_errno=True)
refused = (322, 53, 56, 9)  # execveat, socketpair, clone, mmap
code = [(0x20, 0, 0, 0)] + [(0x15, len(refused) - i, 0, n) for i, n in enumerate(refused)] + [(6, 0, 0, 0x7fff0000), (6, 0, 0, 0x50001)]
text = b"".join(struct.pack("HBBI", *c) for c in code)
class Prog(ctypes.Structure): _fields_ = [("n", ctypes.c_ushort), ("at", ctypes.c_char_p)]
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Prog(len(code), text))) == 0
print("up", flush=True)
time.sleep(1000)
"""
ASSEMBLY = """
.globl _start
_start: mov $1, %eax
 mov $1, %edi
 lea text(%rip), %rsi
 mov $3, %edx
 syscall
1: mov $34, %eax
 syscall
 jmp 1b
text: .ascii "up\\n"
"""
PARENT = """
import os, signal, subprocess, sys
told = []
signal.signal(signal.SIGCHLD, lambda *a: told.append(1))
p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE); p.stdout.readline(); print("up", flush=True); print(p.pid, flush=True)
for line in sys.stdin:
    events = []
    while (r := os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | (0 if line[0] == "w" else os.WNOHANG))):
        events.append((r.si_pid == p.pid, r.si_code, r.si_status))
        if line[0] == "w": break
    print(len(told), events, flush=True)
"""


def hold_still(t: Target, how: str) -> None:
    if how == "frozen":
        t.group.freeze()
    elif how == "stopped":
        os.kill(t.pid, signal.SIGSTOP)
        until(lambda: procfs.state(t.pid) == "T", "stopped")
    elif how == "both":
        hold_still(t, "stopped")
        t.group.freeze()


@pytest.mark.parametrize("how", ["running", "frozen", "stopped", "both"])
def test_it_keeps_its_identity_and_ends_as_told(start: Start, how: str) -> None:
    t = start(SLEEPER, "an argument")
    before, descriptors = t.visible(), procfs.descriptors(t.pid)
    hold_still(t, how)
    with agent(t.convert()) as a:
        assert t.visible() == before
        now = procfs.descriptors(t.pid)
        assert {fd: d.target for fd, d in descriptors.items()}.items() <= {fd: d.target for fd, d in now.items()}.items()
        assert procfs.status(t.pid).rss < 1 << 20 and procfs.status(t.pid).tracer == 0
        if how in ("stopped", "both"):
            until(lambda: procfs.state(t.pid) == "T", "stopped again")
            assert a.quiet()
            os.kill(t.pid, signal.SIGCONT)
            assert a.signal().sig == signal.SIGCONT
        os.kill(t.pid, signal.SIGTERM)
        s = a.signal()
        assert (s.sig, s.code, s.pid, s.uid) == (signal.SIGTERM, link.SI_USER, os.getpid(), 0)
        a.exit(7 << 8)
        assert ended(t.process) == 7


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT, signal.SIGPIPE, 40])
def test_it_dies_of_the_guest_s_signal_without_a_core(start: Start, sig: int, tmp_path: Path) -> None:
    t = start(SLEEPER, cwd=tmp_path)
    with agent(t.convert()) as a:
        a.exit(sig | (0x80 if sig == signal.SIGSEGV else 0))
        assert t.process.wait(15) == -sig
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["running", "frozen"])
def test_of_many_threads_one_is_left(start: Start, how: str) -> None:
    t = start(THREADS)
    until(lambda: len(procfs.threads(t.pid)) == 5, "its threads")
    hold_still(t, how)
    with agent(t.convert()) as a:
        assert procfs.threads(t.pid) == [t.pid]
        a.exit(9 << 8)
        assert ended(t.process) == 9


def test_no_instruction_of_a_frozen_program_runs_any_more(start: Start) -> None:
    t = start("import os; print('up', flush=True); n = 0\nwhile True: n += 1; os.write(1, b'%d\\n' % n)")
    assert t.process.stdout is not None
    t.line()
    t.group.freeze()
    os.set_blocking(t.process.stdout.fileno(), False)
    while t.process.stdout.read(1 << 20):
        pass
    with agent(t.convert()) as a:
        assert t.process.stdout.read() is None
        a.exit(0)
        assert ended(t.process) == 0


def test_a_tree_s_descendants_are_reaped_and_nobody_hears_of_it(start: Start) -> None:
    python = os.path.realpath(sys.executable)
    parent = start(PARENT, python, "-c", TREE, stdin=subprocess.PIPE)
    pid, stdin = int(parent.line()), parent.process.stdin
    assert stdin is not None

    def ask(what: str) -> str:
        stdin.write(what.encode() + b"\n")
        stdin.flush()
        return parent.line()

    until(lambda: len(procfs.tree(pid)) == 4, "the tree")
    inner = Cgroup(parent.group.path / "tree")
    inner.create()
    kids = [p for p in inner.capture(lambda: procfs.tree(pid)) if p != pid]
    inner.freeze()
    for k in kids:
        os.kill(k, signal.SIGKILL)
    with agent(convert(pid, thaw=inner.thaw, freeze=inner.freeze)) as a:
        until(lambda: procfs.tree(pid) == [pid] and all(procfs.state(k) is None for k in kids), "all reaped")
        assert a.quiet() and ask("e") == "0 []"
        a.exit(5 << 8)
        assert ask("w") == "1 [(True, 1, 5)]"


def test_an_ordinary_user_without_privileges(start: Start) -> None:
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    t = start(SLEEPER, prefix=prefix)
    t.group.freeze()
    before = t.visible()
    with agent(t.convert()) as a:
        status = procfs.status(t.pid)
        assert t.visible() == before and status.uids == (65534,) * 4 and status.no_new_privs and status.cap_effective == 0
        os.kill(t.pid, signal.SIGUSR1)
        assert a.signal().sig == signal.SIGUSR1
        a.exit(0)
        assert ended(t.process) == 0


def test_a_seccomp_filter_against_every_call_that_we_need(start: Start) -> None:
    t = start(SECCOMP)
    t.group.freeze()
    with agent(t.convert(hold=True)) as a:
        assert procfs.status(t.pid).seccomp == 2
        a.exit(6 << 8)
        assert ended(t.process) == 6


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_an_empty_chroot_in_its_own_namespaces(start: Start, tmp_path: Path, user: str) -> None:
    jail = tmp_path / "jail"
    jail.mkdir(mode=0o755)
    source = tmp_path / "t.s"
    source.write_text(ASSEMBLY)
    subprocess.run(["gcc", "-nostdlib", "-static", "-o", jail / "t", source], check=True)
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        os.chmod(directory, 0o755)
    who = ["--userspec=65534:65534"] if user == "nobody" else []
    t = start(command=["unshare", "-m", "-n", "-i", "-u", "chroot", *who, str(jail), "/t"])
    t.group.freeze()
    before = t.visible()
    with agent(t.convert()) as a:
        assert t.visible() == before
        os.kill(t.pid, signal.SIGUSR2)
        assert a.signal().sig == signal.SIGUSR2
        a.exit(3 << 8)
        assert ended(t.process) == 3


class Called(Exception):
    """Raised by a step of a test."""


@pytest.mark.parametrize("code", [NANOSLEEP, THREADS], ids=["sleep", "threads"])
@pytest.mark.parametrize("how", ["running", "frozen", "stopped"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_everything_as_it_was(start: Start, step: str, how: str, code: str) -> None:
    t = start(code, "1", stdin=subprocess.PIPE)
    until(lambda: procfs.state(t.pid) == "S" and len(procfs.threads(t.pid)) == (5 if code is THREADS else 1), "at work")
    hold_still(t, how)
    before, calls = t.inner(), [procfs.syscall(t.pid, x) for x in procfs.threads(t.pid)]

    def fail(name: str) -> None:
        if name == step:
            raise Called

    with pytest.raises(Called):
        convert(t.pid, thaw=t.group.thaw, freeze=t.group.freeze if how == "frozen" else lambda: None, hold=True, on_step=fail)
    assert t.inner() == before
    assert t.group.is_frozen() == (how == "frozen")
    if how == "frozen":
        until(lambda: [procfs.syscall(t.pid, x) for x in procfs.threads(t.pid)] == calls, "each thread back in its call")
        t.group.thaw()
    if how == "stopped":
        until(lambda: procfs.state(t.pid) == "T", "still stopped")
        os.kill(t.pid, signal.SIGCONT)
    if code is NANOSLEEP:
        assert slept(t.line()) and ended(t.process) == 0
    else:
        used = procfs.stat(t.pid)
        until(lambda: procfs.stat(t.pid).utime > used.utime, "its threads work")


def test_a_missing_binary_is_told_and_the_process_runs_on(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    t = start(NANOSLEEP, "1")
    asleep(t)
    t.group.freeze()
    monkeypatch.setenv("MIG_LIBEXEC", str(tmp_path))
    with pytest.raises(DeputyError, match="as before") as e:
        t.convert()
    assert e.value.rolled_back and isinstance(e.value, MigError) and t.group.is_frozen()
    (tmp_path / "deputy").write_text("not a program")
    os.chmod(tmp_path / "deputy", 0o755)
    with pytest.raises(DeputyError, match="execveat"):
        t.convert()
    t.group.thaw()
    assert slept(t.line())


def test_a_process_without_a_free_descriptor_runs_on(start: Start) -> None:
    code = (
        "import os,resource,time; resource.setrlimit(7, (20, 20))\ntry:\n while True: os.open('/dev/null', 0)\n"
        "except OSError: print('up', flush=True); time.sleep(1000)"
    )
    t = start(code)
    t.group.freeze()
    before = t.inner()
    with pytest.raises(DeputyError, match="Too many open files") as e:
        t.convert()
    assert e.value.rolled_back and t.inner() == before and t.group.is_frozen()


def test_a_process_that_is_killed_meanwhile(start: Start) -> None:
    t = start(THREADS)
    until(lambda: len(procfs.threads(t.pid)) == 5, "its threads")
    with pytest.raises(DeputyError) as e:
        t.convert(on_step=lambda name: os.kill(t.pid, signal.SIGKILL) if name == "binary" else None)
    assert not e.value.rolled_back
    until(lambda: procfs.state(t.pid) in (None, "Z"), "its end")


def test_no_such_process() -> None:
    p = subprocess.Popen(["true"])
    p.wait()
    with pytest.raises(DeputyError):
        convert(p.pid)


def test_signals_pending_at_the_dump_are_dropped_and_later_ones_are_not(start: Start) -> None:
    t = start("import signal,time; signal.pthread_sigmask(0, range(1, 65)); print('up', flush=True); time.sleep(1000)")
    os.kill(t.pid, signal.SIGUSR2)
    os.kill(t.pid, signal.SIGRTMIN + 1)
    os.kill(t.pid, signal.SIGRTMIN + 1)
    t.group.freeze()
    drop = procfs.status(t.pid).shd_pending
    assert drop == 1 << 11 | 1 << (signal.SIGRTMIN)
    os.kill(t.pid, signal.SIGTERM)
    with agent(t.convert(drop_signals=drop)) as a:
        assert a.signal().sig == signal.SIGTERM
        os.kill(t.pid, signal.SIGUSR2)
        assert a.signal().sig == signal.SIGUSR2
        a.exit(0)
        assert ended(t.process) == 0


def test_ignored_signals_reach_the_deputy_and_its_timers_do_not(start: Start) -> None:
    code = "import signal,time; signal.signal(10, signal.SIG_IGN); signal.setitimer(0, .05, .05); signal.signal(14, lambda *a: None)\n"
    t = start(code + "print('up', flush=True)\nwhile True: time.sleep(1)")
    with agent(t.convert()) as a:
        os.kill(t.pid, signal.SIGUSR1)
        seen = [a.signal()]
        while seen[-1].sig != signal.SIGUSR1:
            seen.append(a.signal())
        assert all(not link.should_forward(s) for s in seen[:-1]) and link.should_forward(seen[-1])
        subprocess.run(["sleep", "0.12"], check=True)  # more than two periods of its timer
        assert a.quiet()


def test_a_queued_signal_comes_with_its_value(start: Start) -> None:
    t = start(SLEEPER)
    with agent(t.convert()) as a:
        sender = "import ctypes,sys; sys.exit(ctypes.CDLL(None).sigqueue(int(sys.argv[1]), 37, ctypes.c_void_p(4711)))"
        subprocess.run([sys.executable, "-c", sender, str(t.pid)], check=True)
        s = a.signal()
        assert (s.sig, s.code, s.value) == (37, link.SI_QUEUE, 4711)


def test_a_closed_descriptor_is_the_end_of_the_pipe(start: Start) -> None:
    r, w = os.pipe()
    t = start(SLEEPER, stderr=w)
    os.close(w)
    with open(r, "rb") as reader, agent(t.convert()) as a:
        copy = libc.pidfd_getfd(t.pid, 2)
        os.write(copy, b"before the end")
        os.close(copy)
        a.sock.send(link.close_packet(2))
        assert reader.read() == b"before the end"  # returns at the end of the file
        a.sock.send(link.close_packet(999))  # not open: nothing happens
        os.kill(t.pid, signal.SIGHUP)
        assert a.signal().sig == signal.SIGHUP
        a.exit(0)
        assert ended(t.process) == 0


def test_a_new_agent_finds_the_link_and_what_was_queued(start: Start) -> None:
    t = start(SLEEPER)
    deputy = t.convert()
    deputy.sock.close()
    os.kill(t.pid, signal.SIGUSR1)
    os.kill(t.pid, signal.SIGHUP)
    until(lambda: procfs.status(t.pid).shd_pending == 0, "the deputy has taken them")
    deputy.sock = retake_link(t.pid, deputy.peer_fd)
    with agent(deputy) as a:
        assert {a.signal().sig, a.signal().sig} == {signal.SIGUSR1, signal.SIGHUP}
        a.exit(4 << 8)
        assert ended(t.process) == 4
    with pytest.raises(OSError):
        retake_link(os.getpid(), 0)


def test_the_agent_sees_the_end_of_a_killed_deputy(start: Start) -> None:
    t = start(SLEEPER)
    with agent(t.convert()) as a:
        os.kill(t.pid, signal.SIGKILL)
        assert t.process.wait(15) == -signal.SIGKILL
        assert a.sock.recv(10) == b""


def test_thousands_of_signals_for_an_agent_that_does_not_read(start: Start) -> None:
    t = start(SLEEPER)
    with agent(t.convert()) as a:
        for n in range(3000):
            os.kill(t.pid, signal.SIGRTMIN + n % 5)
        # it has nothing more to do once it sleeps: then the socket is full or all signals are on their way
        until(lambda: all(procfs.state(t.pid) == "S" for _ in range(50)), "the deputy has worked them off")
        a.exit(1 << 8)
        got = 0
        with contextlib.suppress(ConnectionError):
            while packet := a.sock.recv(link.MAX_PACKET):
                got += isinstance(link.unpack(packet), link.Signal)
        assert got > 100 and ended(t.process) == 1


def test_held_memory_is_intact_and_goes_with_the_deputy(start: Start) -> None:
    t = start(
        "import ctypes,threading,time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "b = ctypes.create_string_buffer(bytes(range(256)) * 4096); print('up', flush=True)\n"
        "print(ctypes.addressof(b), flush=True); time.sleep(1000)"
    )
    address, holders = int(t.line()), []
    t.group.freeze()
    deputy = t.convert(hold=True, on_hold=holders.append)
    with agent(deputy) as a:
        (holder,) = holders
        assert deputy.holder == holder and procfs.tree(t.pid) == [t.pid, holder]
        assert libc.process_vm_readv(holder, address, 1 << 20) == bytes(range(256)) * 4096
        assert os.listdir(f"/proc/{holder}/fd") == [] and procfs.stat(holder).sid == holder
        for sig in (signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
            os.kill(holder, sig)

        def pausing() -> bool:
            call = procfs.syscall(holder, holder)
            return call is not None and call.nr == 34

        until(pausing, "the holder sleeps on")
        assert os.waitid(os.P_PID, t.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "the parent hears nothing"
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_PID, holder, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert a.quiet()
        a.exit(0)
        assert ended(t.process) == 0
        until(lambda: procfs.state(holder) in (None, "Z"), "the holder ended too")


def test_posix_locks_stay(start: Start, tmp_path: Path) -> None:
    import fcntl

    name = str(tmp_path / "locked")
    code = "import fcntl,sys,time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('up', flush=True); time.sleep(1000)"
    t = start(code, name)
    t.group.freeze()
    with agent(t.convert()) as a, open(name, "r+") as f:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        a.exit(0)
        assert ended(t.process) == 0
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_thousand_descriptors_are_kept(start: Start) -> None:
    code = "import os,resource,time; resource.setrlimit(7, (2000, 2000)); x = [os.open('/dev/null', 0) for _ in range(1000)]\n"
    t = start(code + "print('up', flush=True); time.sleep(1000)")
    t.group.freeze()
    before = set(procfs.descriptors(t.pid))
    with agent(t.convert()) as a:
        assert before < set(procfs.descriptors(t.pid))
        a.exit(0)
        assert ended(t.process) == 0


def test_after_a_real_dump_in_a_helper_process(start: Start, tmp_path: Path) -> None:
    t = start(THREADS)
    t.group.freeze()
    criu_dump(t, tmp_path / "img")
    before = t.visible()
    deputy = asyncio.run(convert_in_helper(t.pid, str(t.group.path)))
    with agent(deputy) as a:
        assert t.visible() == before and not journal_path(t.pid).exists()
        assert deputy.sock.family == socket.AF_UNIX and deputy.sock.type == socket.SOCK_SEQPACKET
        os.kill(t.pid, signal.SIGTERM)
        assert a.signal().sig == signal.SIGTERM
        a.exit(2 << 8)
        assert ended(t.process) == 2


def test_a_helper_tells_what_went_wrong(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = start(NANOSLEEP, "1")
    asleep(t)
    t.group.freeze()
    monkeypatch.setenv("MIG_LIBEXEC", str(tmp_path))
    with pytest.raises(DeputyError, match="No such file") as e:
        asyncio.run(convert_in_helper(t.pid, str(t.group.path)))
    assert e.value.rolled_back and t.group.is_frozen() and not journal_path(t.pid).exists()
    t.group.thaw()
    assert slept(t.line())


def test_a_helper_that_waits_in_vain_goes_away() -> None:
    with Helper() as h:
        pid = h.pid
    assert procfs.state(pid) is None
