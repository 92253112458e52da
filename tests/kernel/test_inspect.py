"""Facts and reasons of real processes, read from the real kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mig import paths
from mig.inspect import backlog, own_sockets, sockets
from mig.inspect.facts import gather
from mig.kernel import procfs

PRELUDE = "import os, sys, time, socket, ctypes, mmap, fcntl, select\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@contextlib.contextmanager
def running(code: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that has run ``code``, says so by its name ``ready``, and waits; ended, with its group, on the way out."""
    said = "\nlibc.prctl(15, b'ready')\ntime.sleep(600)"
    # no stdio of the test's own: pytest captures into files that are shared with it
    standard = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
    p = subprocess.Popen([sys.executable, "-I", "-S", "-c", PRELUDE + code + said], start_new_session=True, **standard)
    try:
        eventually(lambda: procfs.comm(p.pid) == "ready", "the process did not come up")
        yield p
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        for stream in (p.stdin, p.stdout, p.stderr):
            if stream is not None:
                stream.close()


def eventually(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def reasons_of(code: str, **options: Any) -> list[str]:
    with running(code, **options) as p:
        return gather(p.pid).reasons


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os.setgroups([]); os.setgid(1000); os.setuid(1000)", []),
        ("os.nice(-5); os.setgroups([]); os.setgid(1000); os.setuid(1000)", ["nice value -5"]),
        ("os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)); os.setgid(1000); os.setuid(1000)", ["real-time scheduling (class 2)"]),
        ("open('/proc/self/oom_score_adj', 'w').write('17'); os.nice(5); os.setgid(1000); os.setuid(1000)", []),
        ("libc.prctl(8, 1, 0, 0, 0); os.setgid(1000); os.setuid(1000)", ["CapPrm"]),  # PR_SET_KEEPCAPS
    ],
)
def test_privileges(code: str, told: list[str]) -> None:
    with running(f"os.setpriority(os.PRIO_PROCESS, 0, 0); {code}") as p:
        said = gather(p.pid).privileges
        assert len(said) == len(told) and all(f"ready ({p.pid}): " in s and t in s for s, t in zip(said, told, strict=True)), said


def test_a_plain_process() -> None:
    with running("m = bytearray(20 << 20)") as p:
        f = gather(p.pid)
    assert f.reasons == [] and f.externals == [] and f.shared_files == []
    assert (f.pid, f.ppid, f.pgid, f.sid) == (p.pid, os.getpid(), p.pid, p.pid)
    assert f.tree == f.tids == [p.pid]
    assert (f.uid, f.gid, f.uids) == (os.getuid(), os.getgid(), [os.getuid()])
    assert f.hostname == socket.gethostname() and f.comm == "ready"
    assert 20 << 20 < f.rss < 200 << 20 and 0 < f.cpu_s < 60 and 0 < f.age_s < 60
    assert f.boot and f.start > 0 and f.tty_nr == 0


def test_a_tree_with_threads() -> None:
    code = "import threading\nif os.fork() == 0: os.fork(); time.sleep(600)\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    with running(code) as p:
        eventually(lambda: len(gather(p.pid).tree) == 3, "the children did not come")
        f = gather(p.pid)
        assert f.tree[0] == p.pid and len(f.tree) == 3 and len(f.tids) == 4
        assert f.reasons == []
        middle = procfs.children(p.pid)[0]
        assert gather(middle).tree == [middle, *procfs.children(middle)]


def test_pipes_to_others_are_external_and_those_inside_are_not() -> None:
    with running("a, b = os.pipe()\nif os.fork() == 0: time.sleep(600)", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        f = gather(p.pid)
        assert f.reasons == []
        assert [(e.kind, e.dir, e.shared) for e in f.externals] == [("pipe", "r", False), ("pipe", "w", False)]
        stdin, stdout = f.externals
        assert stdin.key == os.readlink(f"/proc/{p.pid}/fd/0") and sorted(stdin.holders) == [[q, 0] for q in sorted(f.tree)]
        assert [e.id for e in f.externals] == [0, 1] and stdout.holders[0] == [p.pid, 1]


def test_a_pipe_that_another_process_reads_too_is_shared() -> None:
    r, w = os.pipe()
    try:
        with running("", stdin=r) as p:
            (e,) = gather(p.pid).externals
            assert e.shared and e.dir == "r"  # we still have the reading end
            (e,) = gather(p.pid, ignore=[os.getpid()]).externals
            assert not e.shared
    finally:
        os.close(r)
        os.close(w)


def test_an_end_whose_other_end_is_nowhere_to_be_seen_is_external() -> None:
    # its holder may be outside of our pid namespace
    with running("r, w = os.pipe(); os.close(r)") as p:
        (e,) = gather(p.pid).externals
        assert (e.dir, e.holders) == ("w", [[p.pid, 4]])


def test_a_deleted_file_that_another_process_reads_cannot_travel(tmp_path: Path) -> None:
    """GNU parallel catches its jobs' output so: what a guest wrote into its copy was lost."""
    with open(tmp_path / "out", "w+") as f, running("", stdout=f) as p:
        assert gather(p.pid).reasons == []
        (tmp_path / "out").unlink()
        (reason,) = gather(p.pid).reasons
        assert "deleted file" in reason and str(os.getpid()) in reason and "GNU parallel" in reason
        assert gather(p.pid, ignore=[os.getpid()]).reasons == [], "nobody else has it: a copy is as good"


def test_a_pipe_in_both_directions_is_a_job_server() -> None:
    r, w = os.pipe()
    try:
        (reason,) = reasons_of("", pass_fds=(r, w))
    finally:
        os.close(r)
        os.close(w)
    assert f"descriptors {r}, {w}" in reason and "job server" in reason and f"({os.getpid()})" in reason


def test_a_file_whose_offset_is_shared_with_one_that_stays(tmp_path: Path) -> None:
    shared, appended, own = tmp_path / "shared", tmp_path / "appended", tmp_path / "own"
    with shared.open("wb") as s, appended.open("ab") as a:
        s.write(b"12345")
        s.flush()
        with running(f"f = open({str(own)!r}, 'w')", pass_fds=(s.fileno(), a.fileno())) as p:
            f = gather(p.pid)
            assert f.reasons == []
            (x,) = f.shared_files
            assert (x.pid, x.fd, x.pos, x.ino) == (p.pid, s.fileno(), 5, shared.stat().st_ino)


OBSTACLES = [
    ("s = socket.create_server(('127.0.0.1', 0))", ["a TCP socket (listening on 127.0.0.1:"]),
    ("s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", ["a UDP socket open as descriptor"]),
    ("s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", ["a netlink socket"]),
    ("s = socket.socket(socket.AF_UNIX); s.bind('\\0mig-%d' % os.getpid()); s.listen()", ["offers a unix socket without a file", "@mig-"]),
    ("s = socket.socket(socket.AF_UNIX); s.bind('/tmp/mig-test-%d' % os.getpid()); os.unlink(s.getsockname()); s.listen()",
     ["offers a unix socket to others", "/tmp/mig-test-", "--own-sockets"]),
    ("f = open('/dev/kmsg')", ["the device /dev/kmsg"]),
    ("f = open('/dev/fuse', 'rb')", ["the device /dev/fuse"]),
    ("p = ctypes.create_string_buffer(256); assert libc.syscall(425, 8, p) >= 0", ["io_uring"]),
    ("assert libc.syscall(323, 1) >= 0", ["userfaultfd"]),
    ("assert libc.inotify_init() >= 0", ["watches files", "inotify"]),
    ("p = os.pidfd_open(os.getppid())", ["holds a pidfd"]),
    ("f = open('/proc/%d/stat' % os.getppid())", ["a file of a process outside of its tree"]),
    ("libc.shmat.restype = ctypes.c_long; i = libc.shmget(0, 4096, 0o1600); assert libc.shmat(i, None, 0) != -1; libc.shmctl(i, 0, None)",
     ["System V shared memory"]),
    ("n = '/dev/shm/mig-test-%d' % os.getpid(); f = open(n, 'w+'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096)\n"
     "if os.fork() == 0:\n os.set_inheritable(0, True); libc.prctl(1, 9); time.sleep(600)", ["named shared memory"]),
    ("f = open('/tmp/mig-test-ghost-%d' % os.getpid(), 'w+'); os.posix_fallocate(f.fileno(), 0, 65 << 20); os.unlink(f.name)",
     ["of 65 MiB"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words"), OBSTACLES, ids=[w[0].split("(")[0].strip() for _, w in OBSTACLES])
def test_obstacles_are_found(code: str, words: list[str]) -> None:
    with running(code) as p:
        try:
            reasons = gather(p.pid).reasons
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/mig-test-{p.pid}")
    assert reasons and all(all(w in r for w in words) for r in reasons), reasons
    assert all(f"({p.pid})" in r for r in reasons[:1])


def test_several_obstacles_are_all_listed() -> None:
    reasons = reasons_of("a = open('/dev/kmsg'); b = socket.create_server(('127.0.0.1', 0)); libc.inotify_init()")
    assert len(reasons) == 3


def test_what_is_not_an_obstacle(tmp_path: Path) -> None:
    code = f"""
a, b = socket.socketpair(); e = select.epoll(); t = os.eventfd(0); p = os.pidfd_open(os.getpid())
m = mmap.mmap(-1, 8192); d = [open(n) for n in ('/dev/null', '/dev/zero', '/dev/urandom', '/proc/self/stat', '/proc/meminfo')]
f = open({str(tmp_path / "gone")!r}, 'w'); os.unlink(f.name); f.write('x')
x = os.memfd_create('x'); master, slave = os.openpty()
if os.fork() == 0: time.sleep(600)
"""
    assert reasons_of(code) == []


def test_a_child_shares_much_with_a_parent_that_stays() -> None:
    code = """
a, b = socket.socketpair(); e = select.epoll(); m = mmap.mmap(-1, 8192); x = os.memfd_create('x'); master, slave = os.openpty()
if os.fork() == 0: time.sleep(600)
"""
    with running(code) as p:
        assert gather(p.pid).reasons == []
        (child,) = procfs.children(p.pid)
        reasons = gather(child).reasons
    assert sum(f"({p.pid})" in r for r in reasons) == 4
    for word in ("unix socket", "eventpoll", "shares memory (anonymous)", "/memfd:x", "master side"):
        assert any(word in r for r in reasons), (word, reasons)
    assert len(reasons) == 5


def test_sockets_for_its_own_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says so is believed, until the process with that number is another; multiprocessing's speak for themselves."""
    monkeypatch.setattr(paths, "OWN_SOCKETS", tmp_path / "own")
    with running(f"s = socket.socket(socket.AF_UNIX); s.bind({str(tmp_path / 'a')!r}); s.listen()") as p:
        assert len(gather(p.pid).reasons) == 1
        own_sockets.declare(p.pid)
        assert gather(p.pid).reasons == []
        (tmp_path / "own" / str(p.pid)).write_text("1")
        assert len(gather(p.pid).reasons) == 1
    own_sockets.declare(os.getpid())
    assert os.listdir(tmp_path / "own") == [str(os.getpid())], "what is not true any more is forgotten"
    with pytest.raises(ProcessLookupError):
        own_sockets.declare(p.pid)
    assert reasons_of("from multiprocessing.connection import Listener; s = Listener(family='AF_UNIX')") == []


def test_connections_that_wait_to_be_accepted(tmp_path: Path) -> None:
    """What CRIU can make anew is no obstacle: both ends here, open, and nothing sent."""

    def connected() -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].connect(str(tmp_path / "a"))
        return made[-1]

    made = [socket.socket(socket.AF_UNIX)]
    diag = sockets.UnixDiag(os.getpid())
    try:
        with running("") as stranger:
            server = made[0]
            server.bind(str(tmp_path / "a"))
            server.listen()
            assert backlog.not_now(diag, [os.getpid()]) == ""
            c = connected()
            assert backlog.not_now(diag, [os.getpid(), stranger.pid]) == ""
            assert diag.unread(os.fstat(c.fileno()).st_ino) == 0
            c.send(b"x")
            assert "data on a connection" in backlog.not_now(diag, [os.getpid()])
            assert backlog.not_now(diag, [stranger.pid]) == "", "none of this tree's"
            made.append(server.accept()[0])
            assert backlog.not_now(diag, [os.getpid()]) == ""
            connected().close()
            assert "closed before it was accepted" in backlog.not_now(diag, [os.getpid()])
            server.accept()[0].close()
            assert backlog.not_now(diag, [os.getpid()]) == ""
            assert diag.unread(1) is None
    finally:
        diag.close()
        for s in made:
            s.close()


def test_a_connection_that_a_stranger_has_not_accepted(tmp_path: Path) -> None:
    name = str(tmp_path / "a")
    with running(f"s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen()") as stranger, socket.socket(socket.AF_UNIX) as c:
        c.connect(name)
        diag = sockets.UnixDiag(os.getpid())
        try:
            assert "outside of its tree" in backlog.not_now(diag, [os.getpid()])
            assert backlog.not_now(diag, [os.getpid(), stranger.pid]) == ""
        finally:
            diag.close()


def test_connections_that_come_and_go_inside_a_tree_are_no_strangers(tmp_path: Path) -> None:
    """One end is seen, and the other was closed, or not yet accepted, when its process was looked at."""
    code = f"""
import socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(self.request.recv(1))
server = socketserver.UnixStreamServer({str(tmp_path / "s")!r}, Echo)
if os.fork() == 0: server.serve_forever()
server.server_close()
def connects():
    while True:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect({str(tmp_path / "s")!r}); s.sendall(b"x"); s.recv(1)
threading.Thread(target=connects, daemon=True).start()
"""
    with running(code) as p:
        wrong = [r for _ in range(200) for r in gather(p.pid).reasons if "connected by" in r]
    assert not wrong


def test_a_unix_socket_to_a_process_that_stays_is_named() -> None:
    a, b = socket.socketpair()
    with a, b:
        with running("", stdin=a) as p:
            (reason,) = gather(p.pid).reasons
    assert "connected by a unix socket (descriptor 0)" in reason and f"({os.getpid()})" in reason


def test_a_named_pipe_shared_with_others(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = f"f = os.open({str(fifo)!r}, os.O_RDWR)"
    with running(code) as p:
        assert gather(p.pid).reasons == []
        fd = os.open(fifo, os.O_RDWR)
        (reason,) = gather(p.pid).reasons
        os.close(fd)
    assert str(fifo) in reason


@contextlib.contextmanager
def on_a_terminal(*argv: str) -> Iterator[tuple[int, int]]:
    """A session leader with a pseudo terminal: its pid and the master."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.closerange(3, 1024)
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    try:
        yield pid, master
    finally:
        for p in procfs.tree(pid)[::-1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(p, signal.SIGKILL)
        os.close(master)
        os.waitpid(pid, 0)


def first_child(pid: int) -> int:
    def sleepers() -> list[int]:
        return [child for child in procfs.children(pid) if procfs.comm(child) == "sleep"]

    eventually(lambda: bool(sleepers()), "no child came")
    return sleepers()[0]


def test_the_controlling_terminal_follows_and_its_session_leader_does_not() -> None:
    with on_a_terminal("/bin/bash", "--norc", "-c", "set -m; sleep 600; true") as (shell, master):
        fcntl.ioctl(master, termios.TIOCSWINSZ, b"\x21\x00\x63\x00\x00\x00\x00\x00")
        job = first_child(shell)
        f = gather(job)
        assert f.reasons == [] and f.tty_nr and f.sid == shell and f.tpgid == job
        (e,) = [e for e in f.externals if e.kind == "tty"]
        assert (e.key, e.dir, e.holders) == ("tty", "rw", [[job, 0], [job, 1], [job, 2]])
        assert os.readlink(f"/proc/{job}/fd/0") == f"/dev/pts/{e.index}"
        assert e.winsize == b"\x21\x00\x63\x00\x00\x00\x00\x00" and e.termios[3] & termios.ECHO and len(e.termios) == 7
        (reason,) = gather(shell).reasons
        assert "leader of the session of its terminal" in reason and f"bash ({shell})" in reason


def test_a_terminal_that_is_not_open_any_more_is_found_by_its_number() -> None:
    with on_a_terminal("/bin/bash", "--norc", "-c", "set -m; sleep 600 < /dev/null > /dev/null 2>&1; true") as (shell, _):
        job = first_child(shell)
        (e,) = gather(job).externals
        assert e.kind == "tty" and e.holders == [] and e.termios


def test_someone_elses_terminal_is_an_obstacle() -> None:
    with on_a_terminal("/bin/sleep", "600") as (sleeper, _):
        with running(f"f = open(os.readlink('/proc/{sleeper}/fd/0'))") as p:
            (reason,) = gather(p.pid).reasons
    assert "a terminal but not its controlling one" in reason


def test_a_zombie_and_a_vanished_process() -> None:
    p = subprocess.Popen(["/bin/true"])
    eventually(lambda: procfs.state(p.pid) == "Z", "it does not end")
    (reason,) = gather(p.pid).reasons
    assert "has ended already" in reason
    p.wait()
    with pytest.raises(ProcessLookupError):
        gather(p.pid)


def test_init_and_kernel_threads() -> None:
    assert ["init process" in r for r in gather(1).reasons] == [True]
    if procfs.state(2) and procfs.stat(2).is_kernel_thread:  # kthreadd; a container does not see it
        assert ["kernel thread" in r for r in gather(2).reasons] == [True]


def test_a_process_in_other_namespaces() -> None:
    libc = "libc.unshare(0x00020000 | 0x04000000)"  # mount and uts
    (reason,) = reasons_of(libc)
    assert "another mnt and uts namespace" in reason


def test_a_file_opened_in_another_mount_namespace(tmp_path: Path) -> None:
    # opened outside, then into a mount namespace of its own and back by nothing: the descriptor's mount is a copy that we do not see
    code = f"""
pid = os.fork()
if pid == 0:
    libc.unshare(0x00020000)
    s = socket.socket(socket.AF_UNIX); s.connect('\\0mig-mount-%d' % os.getppid())
    f = os.open({str(tmp_path)!r}, os.O_RDONLY)
    socket.send_fds(s, [b'x'], [f]); os._exit(0)
"""
    server = "s = socket.socket(socket.AF_UNIX); s.bind('\\0mig-mount-%d' % os.getpid()); s.listen()"
    take = "c, _ = s.accept(); _, fds, _, _ = socket.recv_fds(c, 9, 1); os.waitpid(pid, 0); c.close(); s.close()"
    (reason,) = reasons_of("\n".join((server, code, take)))
    assert str(tmp_path) in reason and "another mount namespace" in reason


def test_our_own_processes_are_left_alone(tmp_path: Path) -> None:
    script = tmp_path / "omdiscd"
    script.write_text("import time\ntime.sleep(600)\n")
    p = subprocess.Popen([sys.executable, "-I", "-S", str(script)], stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: bool(gather(p.pid).reasons), "it is not recognized")
        assert "a process of this system itself (omdiscd)" in gather(p.pid).reasons[0]
    finally:
        p.kill()
        p.wait()


def test_a_guest_in_its_cell_is_told_in_its_own_numbers() -> None:
    # a pid and mount namespace, as in a cell, where the guest is process 2
    guest_code = "r, w = os.pipe(); os.dup2(r, 0); os.close(r); os.close(w); s = os.open('/', 0); os.close(1); os.close(2); time.sleep(600)"
    init = f"import os, time\nif os.fork() == 0:\n    {guest_code}\ntime.sleep(600)"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, "-I", "-S", "-c", init]
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        eventually(lambda: len(procfs.tree(p.pid)) == 3, "no guest came")
        guest = procfs.tree(p.pid)[2]
        eventually(lambda: sorted(procfs.descriptors(guest)) == [0, 3], "the guest is not ready")
        key = os.readlink(f"/proc/{guest}/fd/0")
        f = gather(guest, guest=True, known_pipes={key: 7})
        assert (f.pid, f.ppid, f.tree, f.tids, f.reasons) == (2, 1, [2], [2], [])
        assert [(e.id, e.key, e.dir, e.holders) for e in f.externals] == [(7, key, "r", [[2, 0]])]
        assert gather(guest, guest=True).externals == []  # a pipe that the keeper does not know is the guest's own
        assert "another mnt and pid namespace" in gather(guest).reasons[0]
    finally:
        p.kill()
        p.wait()


def test_an_ordinary_users_process() -> None:
    null = subprocess.DEVNULL
    p = subprocess.Popen(["/bin/sleep", "600"], user=65534, group=65534, extra_groups=[], stdin=null, stdout=null, stderr=null)
    try:
        f = gather(p.pid)
        assert (f.uid, f.gid, f.uids, f.gids, f.reasons) == (65534, 65534, [65534], [65534], [])
    finally:
        p.kill()
        p.wait()
