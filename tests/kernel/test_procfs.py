"""/proc, as the kernel writes it for processes that try to be difficult."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mig.kernel import libc, pidfd, procfs
from mig.model import ProcessId
from tests.kernel.deputy_lab import until

NAME = "import ctypes,sys,time; ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0); print('up', flush=True); time.sleep(1000)"


@pytest.fixture
def child() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for p in started:
        if p.poll() is None:
            p.kill()
        p.wait()
        if p.stdout is not None:
            p.stdout.close()


def run(child: list[subprocess.Popen[bytes]], code: str, *args: str, **popen: object) -> int:
    p = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, **popen)  # type: ignore[call-overload]
    child.append(p)
    assert p.stdout.readline() == b"up\n"
    return int(p.pid)


@pytest.mark.parametrize("name", ["a) R 1 (", "((()))", "x\ny) S 0 0", " ", ") "])
def test_a_comm_may_hold_what_looks_like_the_rest_of_the_line(child: list[subprocess.Popen[bytes]], name: str) -> None:
    pid = run(child, NAME, name)
    s = procfs.stat(pid)
    assert (s.pid, s.comm, s.ppid, s.pgid, s.sid) == (pid, name, os.getpid(), os.getpgid(pid), os.getsid(pid))
    assert s.state in "SR" and s.num_threads == 1 and not s.is_kernel_thread
    assert procfs.comm(pid) == name
    until(lambda: procfs.state(pid) == "S", "sleeping")


def test_stat_line_fields_are_those_of_the_manual() -> None:
    line = b"7 (a) R 1 () S 1 7 7 34816 7 4194304 100 0 1 0 5 6 7 8 20 0 3 0 123456 1000 50 " + b"0 " * 14 + b"1 0 0\n"
    s = procfs.parse_stat(line)
    assert (s.comm, s.state, s.tty_nr, s.tpgid) == ("a) R 1 (", "S", 34816, 7)
    assert (s.utime, s.stime, s.cutime, s.cstime, s.nice, s.num_threads, s.start, s.vsize, s.rss) == (5, 6, 7, 8, 0, 3, 123456, 1000, 50)
    assert (s.minflt, s.majflt, s.processor) == (100, 1, 1)


def test_a_kernel_thread_is_one() -> None:
    line = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 5 0 0 20 0 1 0 1 0 0 " + b"0 " * 14 + b"1 0 0\n"
    assert procfs.parse_stat(line).is_kernel_thread


def test_status_of_a_process_with_a_user_and_masks(child: list[subprocess.Popen[bytes]]) -> None:
    code = (
        "import os,signal,time; os.setgroups([5,6]); os.setgid(1234); os.setuid(4321); signal.pthread_sigmask(0,[10]);"
        "signal.signal(12,signal.SIG_IGN); print('up',flush=True); time.sleep(1000)"
    )
    pid = run(child, code)
    os.kill(pid, signal.SIGUSR1)
    s = procfs.status(pid)
    assert (s.uids, s.gids, s.groups) == ((4321,) * 4, (1234,) * 4, (5, 6))
    assert s.sig_blocked == 1 << 9 and s.sig_ignored >> 11 & 1 and s.shd_pending == 1 << 9
    assert (s.tgid, s.ppid, s.tracer, s.threads, s.nspid[0]) == (pid, os.getpid(), 0, 1, pid)
    assert s.rss > 1 << 20 and s.cap_effective == 0 and s.fields["Name"] == s.name


def test_a_tree_root_first_parents_before_children(child: list[subprocess.Popen[bytes]]) -> None:
    code = (
        "import os,threading,time\n"
        "def branch():\n if os.fork() == 0:\n  os.fork()\n  time.sleep(1000)\n"
        "branch(); t = threading.Thread(target=branch); t.start(); t.join(); time.sleep(.1); print('up', flush=True); time.sleep(1000)"
    )
    pid = run(child, code, stderr=subprocess.DEVNULL)
    until(lambda: len(procfs.tree(pid)) == 5, "two children, two grandchildren")
    tree = procfs.tree(pid)
    assert tree[0] == pid
    for p in tree[1:]:
        assert tree.index(procfs.stat(p).ppid) < tree.index(p)
    assert set(procfs.children(pid)) < set(tree)
    for p in reversed(tree[1:]):
        os.kill(p, signal.SIGKILL)


def test_threads_the_leader_first(child: list[subprocess.Popen[bytes]]) -> None:
    code = "import threading,time\nfor _ in range(3): threading.Thread(target=time.sleep,args=(1000,),daemon=True).start()\n"
    pid = run(child, code + "print('up',flush=True); time.sleep(1000)")
    tids = procfs.threads(pid)
    assert tids[0] == pid and len(tids) == 4
    assert procfs.stat(pid, tids[2]).pid == tids[2]


def test_descriptors_with_flags_position_and_locks(child: list[subprocess.Popen[bytes]], tmp_path: os.PathLike[str]) -> None:
    code = (
        "import fcntl,os,sys,time; f = os.open(sys.argv[1], os.O_RDWR|os.O_CREAT|os.O_APPEND); os.write(f, b'12345'); fcntl.lockf(f, 2);"
        "os.dup2(f, 50); os.unlink(sys.argv[1]); print('up', flush=True); time.sleep(1000)"
    )
    name = os.path.join(tmp_path, "a file")
    pid = run(child, code, name)
    d = procfs.descriptors(pid)
    f = next(x for x in d.values() if x.target.startswith(name) and x.fd != 50)
    assert f.target == name + " (deleted)" and f.pos == 5 and f.cloexec and f.flags & os.O_APPEND and f.flags & os.O_ACCMODE == os.O_RDWR
    assert not f.flags & os.O_CLOEXEC and "lock" in f.extra and f.mnt_id > 0
    assert not d[50].cloexec and d[50].ino == f.ino and d[50].pos == 5
    assert d[1].target.startswith("pipe:[")
    assert libc.kcmp(pid, pid, libc.KCMP_FILE, f.fd, 50) == 0 and libc.kcmp(pid, pid, libc.KCMP_FILE, f.fd, 1) != 0


def test_maps_hold_the_program_and_names_with_blanks(child: list[subprocess.Popen[bytes]], tmp_path: os.PathLike[str]) -> None:
    code = (
        "import mmap,os,sys,time; f = open(sys.argv[1],'w+b'); f.write(b'x'*8192); f.flush(); m = mmap.mmap(f.fileno(), 8192);"
        "os.unlink(sys.argv[1]); print('up', flush=True); time.sleep(1000)"
    )
    name = os.path.join(tmp_path, "two  blanks and\na line")
    maps = procfs.maps(run(child, code, name))
    (m,) = [m for m in maps if "two  blanks" in m.path]
    assert m.size == 8192 and m.perms == "rw-s" and m.path.endswith("\\012a line (deleted)")
    assert {"[vdso]", "[stack]"} <= {m.path for m in maps}
    assert all(a.end <= b.start for a, b in itertools.pairwise(maps))


def test_the_call_in_which_a_thread_waits(child: list[subprocess.Popen[bytes]]) -> None:
    pid = run(child, "import signal; print('up', flush=True); signal.pause()")
    until(lambda: procfs.state(pid) == "S", "waiting")
    call = procfs.syscall(pid, pid)
    assert call is not None and call.nr == 34


def test_a_process_that_is_gone(child: list[subprocess.Popen[bytes]]) -> None:
    pid = run(child, "print('up', flush=True)")
    until(lambda: procfs.state(pid) == "Z", "a zombie")
    assert procfs.cmdline(pid) == [] and procfs.status(pid).rss == 0
    who = pidfd.identity(pid)
    child[0].wait()
    assert procfs.state(pid) is None and not pidfd.still(who)
    for look in (procfs.stat, procfs.status, procfs.comm, procfs.cmdline, procfs.threads, procfs.tree, procfs.descriptors, procfs.maps):
        with pytest.raises(ProcessLookupError):
            look(pid)
    with pytest.raises(ProcessLookupError):
        pidfd.open_process(who)


def test_an_identity_is_not_a_number(child: list[subprocess.Popen[bytes]]) -> None:
    pid = run(child, "import time; print('up', flush=True); time.sleep(1000)")
    who = pidfd.identity(pid)
    assert pidfd.still(who) and not pidfd.still(ProcessId(pid, who.start + 1, who.boot)) and not pidfd.still(ProcessId(pid, who.start, "x"))
    with pytest.raises(ProcessLookupError):
        pidfd.open_process(ProcessId(pid, who.start - 1, who.boot))
    fd = pidfd.open_process(who)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    os.close(fd)
    assert child[0].wait(15) == -signal.SIGKILL


def test_the_pid_here_of_a_process_in_a_pid_namespace(child: list[subprocess.Popen[bytes]]) -> None:
    code = (
        "import os,time; os.unshare(os.CLONE_NEWPID) if hasattr(os,'unshare') else __import__('ctypes').CDLL(None).unshare(0x20000000)\n"
        "if os.fork() == 0:\n os.fork()\n if os.getpid() == 2: print('up', flush=True)\n time.sleep(1000)\ntime.sleep(1000)"
    )
    pid = run(child, code)
    tree = procfs.tree(pid)
    first, second = procfs.host_pid(tree, 1), procfs.host_pid(tree, 2)
    assert {first, second} == set(tree[1:]) and procfs.stat(second).ppid == first
    assert procfs.host_pid(tree, pid) == pid and procfs.ns(first, "pid") != procfs.ns(pid, "pid")
    with pytest.raises(ProcessLookupError):
        procfs.host_pid(tree, 77)
    os.kill(first, signal.SIGKILL)
