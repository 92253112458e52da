"""A process whose guest runs elsewhere becomes its own deputy, in place: same pid, parent, session, terminal and descriptors.

All of its threads are caught by ptrace while it is frozen; the leader then makes a few system calls in our name and ends in an
``execveat`` of the static deputy.  Until that exec everything can be undone, and the process goes on as if nothing had been.

Should the converter die half-way, nothing of the old program may run (its guest does, elsewhere): every thread is parked beforehand,
which means that it falls into ``pause`` with all signals blocked when its tracer is gone.  :mod:`mig.deputy.repair` takes it from there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mig import paths
from mig.deputy import link
from mig.errors import MigError
from mig.kernel import libc, procfs
from mig.kernel.ptrace import (
    PTRACE_EVENT_CLONE,
    PTRACE_EVENT_EXEC,
    PTRACE_INTERRUPT,
    PTRACE_O_TRACECLONE,
    WALL,
    Tracee,
    TraceeDied,
    ptrace,
    reaped,
)

PAGE = 4096
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_PRIVATE_ANONYMOUS = 0x22
MAP_FIXED_NOREPLACE = 0x100000
F_SETFD, FD_CLOEXEC = 2, 1
AT_EMPTY_PATH = 0x1000
MSG_CMSG_CLOEXEC = 0x40000000
PR_GET_TID_ADDRESS = 40
ROBUST_LIST_HEAD = 24  # bytes of struct robust_list_head, the only size that the kernel takes
HELLO_TIMEOUT = 5.0

MARK = b"DEPUTY="
"""How the environment of a deputy begins, and no other program's of ours."""

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EFAULT)
"""How the kernel refuses executable memory, or the writing of code."""

SYSCALL_THEN_PAUSE = bytes.fromhex("0f05 b822000000 0f05 ebf7")
"""``syscall; 1: mov $34, %eax (pause); syscall; jmp 1b``: a call made here ends in pause() for ever unless a tracer steps in."""


class DeputyError(MigError):
    """No deputy could be made.  ``rolled_back``: the process is as it was before; else it is lost (it died, or the deputy did)."""

    def __init__(self, message: str, *, rolled_back: bool = True, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rolled_back = rolled_back


@dataclass
class Deputy:
    """A deputy and our end of its link.

    ``peer_fd``: the number, in the deputy, of its copy of our end (see :func:`retake_link`).  ``holder``: the process that keeps the
    old memory.
    """

    pid: int
    sock: socket.socket
    peer_fd: int
    holder: int | None = None


def retake_link(pid: int, peer_fd: int) -> socket.socket:
    """The agent's end once more, after the agent was restarted: what the deputy reported meanwhile is still queued in it.

    Raises ``OSError`` when there is no such process or descriptor, or it is no socket.
    """
    fd = libc.pidfd_getfd(pid, peer_fd)
    try:
        return socket.socket(fileno=fd)  # asks the kernel for family and type
    except OSError:
        os.close(fd)
        raise


def nothing(*_: object) -> None:
    """A callback that is not wanted."""


def convert(
    pid: int,
    *,
    thaw: Callable[[], None] = nothing,
    freeze: Callable[[], None] = nothing,
    drop_signals: int = 0,
    hold: bool = False,
    on_hold: Callable[[int], None] = nothing,
    on_step: Callable[[str], None] = nothing,
    journal: Callable[[Conversion], None] = nothing,
) -> Deputy:
    """Turn ``pid`` into its deputy; blocking, a few milliseconds (longer by the time that freeing its memory takes, unless held).

    The process may run, be stopped by a signal, or (as in a move) stand frozen in its cgroup; ``thaw`` is called once all of its
    threads are caught, ``freeze`` before they are let go after a failure.  Its descendants were killed before.

    Args:
        drop_signals: mask of the signals that the guest's image holds as pending; the deputy forgets them.
        hold: keep the old address space in a child, reported to ``on_hold(pid)`` right before the exec; it ends with the deputy.
        on_step: called with the name of each step that is done; what it raises makes the conversion roll back.
        journal: called with the conversion before the first change and whenever there is more to undo.

    Raises:
        DeputyError: and the process is as it was before, running, stopped or (with ``freeze``) frozen, unless ``rolled_back`` is false.
    """
    job = Conversion(pid, journal)
    try:
        job.catch()
        on_step("caught")
        thaw()
        job.prepare(drop_signals, hold, on_hold, on_step)
        job.exec()
    except BaseException as e:
        try:
            job.roll_back(freeze)
        except (ProcessLookupError, TraceeDied):
            job.bury()
            raise DeputyError(f"process {pid} ended while it was made a deputy: {e}", rolled_back=False) from e
        if isinstance(e, (OSError, MigError)):
            raise DeputyError(f"process {pid} could not be made a deputy: {e}; it is as before") from e
        raise
    return job.hello()


class Conversion:
    """One conversion: the threads caught, and what has been changed so far in the process."""

    def __init__(self, pid: int, journal: Callable[[Conversion], None] = nothing) -> None:
        self.pid = pid
        self.journal = journal
        self.stopped = False
        self.threads: dict[int, Tracee] = {}  # the leader first
        self.cloexec: set[int] = set()  # descriptors that had FD_CLOEXEC
        self.opened: list[int] = []  # descriptors that we made in it: link, peer, binary
        self.areas: list[tuple[int, int]] = []  # address, bytes of our mappings
        self.tid_state: tuple[int, int, int] | None = None
        self.children: list[int] = []  # those that it had
        self.holder: int | None = None
        self.sock: socket.socket | None = None
        self.insn = 0  # a syscall instruction of the process's own
        self.covered: bytes | None = None  # what stood at it, while our code stands there
        self._cleared: list[int] = []
        self._scratch = 0
        self._exec: tuple[int, int, int, int] | None = None

    @property
    def leader(self) -> Tracee:
        """The thread that makes our calls."""
        return self.threads[self.pid]

    @property
    def ready(self) -> bool:
        """Whether the exec may have begun."""
        return self._exec is not None

    # -- steps ------------------------------------------------------------------------------------------------------------------

    def catch(self) -> None:
        """Seize every thread and park it.  A frozen process stays frozen; in a running one threads may be born until all are caught."""
        self.stopped = procfs.state(self.pid) == "T"
        while new := [t for t in procfs.threads(self.pid) if t not in self.threads]:
            for tid in new:
                try:
                    self.threads[tid] = Tracee(tid)
                except ProcessLookupError:
                    if tid == self.pid:
                        raise
                    continue  # it ended by itself
                self.threads[tid].interrupt()
            for tid in new:
                try:
                    if tid in self.threads:
                        self.threads[tid].wait_stop()
                except TraceeDied:
                    if tid == self.pid:
                        raise
                    del self.threads[tid]  # it ended by itself
        for t in self.threads.values():
            t.begin(self.insn, block=False)  # nothing is changed before it is noted
            self.insn = t.insn
        self.cloexec = close_on_exec(self.pid)
        self.children = procfs.children(self.pid)
        self.journal(self)
        for t in self.threads.values():
            t.park()

    def prepare(self, drop: int, hold: bool, on_hold: Callable[[int], None], on_step: Callable[[str], None]) -> None:
        """All that can be undone: the link, the binary, the descriptors, the holder, the arguments."""
        argv = procfs.cmdline(self.pid) or [os.fsencode(procfs.comm(self.pid))]
        comm = os.fsencode(procfs.comm(self.pid))
        # strings, their pointers, and a page for the results of calls
        size = PAGE + (sum(map(len, argv)) + 9 * len(argv) + len(comm) + 256 + PAGE - 1) // PAGE * PAGE
        room = free_range(self.pid, PAGE + size)
        self._map_code(room)
        self._scratch = self._mmap(room + PAGE, size, PROT_READ | PROT_WRITE)
        on_step("mapped")
        link_fd, peer = self._make_link()
        on_step("link")
        binary = self._pass_binary(link_fd)
        on_step("binary")
        for fd in [*sorted(self.cloexec), link_fd, peer]:
            self.leader.syscall("fcntl", fd, F_SETFD, 0)
            self._cleared.append(fd)
        on_step("descriptors")
        if hold:
            self._hold()
            on_step("held")
            on_hold(self.holder or 0)
        config = MARK + b"%d,%x,%s" % (link_fd, drop, comm)
        self._write_arguments(binary, argv, [config])
        self.journal(self)
        on_step("ready")

    def exec(self) -> None:
        """The point of no return: the old program is gone once this call does not raise."""
        assert self._exec is not None
        siblings = [t for t in self.threads if t != self.pid]
        # a group-stopped or running sibling is killed by the exec; as its tracer we must reap it
        self.leader.syscall("execveat", *self._exec, AT_EMPTY_PATH, event=PTRACE_EVENT_EXEC, reap=siblings)

    def hello(self) -> Deputy:
        """Let the new program go, and wait until it catches signals."""
        assert self.sock is not None
        p = self.leader
        # under a tracer a group stop holds nobody: so a stopped process's deputy gets ready first, and stands still again when we let go
        (p.cont if self.stopped else p.detach)()
        self.sock.settimeout(HELLO_TIMEOUT)
        try:
            link.unpack(self.sock.recv(link.MAX_PACKET))
            if self.stopped:
                ptrace(PTRACE_INTERRUPT, self.pid)
                p.wait_stop()
                p.detach()
        except (OSError, ValueError) as e:
            self.sock.close()
            hint = "a seccomp filter of the process may refuse its calls"
            raise DeputyError(f"the deputy of process {self.pid} does not answer: {e}", rolled_back=False, hint=hint) from e
        self.sock.settimeout(None)
        return Deputy(self.pid, self.sock, self.opened[1], self.holder)

    def adopt(self, descriptors: set[int], children: set[int]) -> None:
        """Take over from a converter that died, and may have done one thing more than it noted: the process had these descriptors and
        children before, and any FD_CLOEXEC may have been cleared."""
        self.opened = sorted(set(map(int, os.listdir(f"/proc/{self.pid}/fd"))) - descriptors)
        self._cleared = sorted(self.cloexec)
        for child in set(procfs.children(self.pid)) - children:
            self.holder = child

    def roll_back(self, freeze: Callable[[], None] = nothing) -> None:
        """Undo everything; afterwards the process goes on, or stands frozen or stopped, as before.

        Raises ``ProcessLookupError`` or :class:`TraceeDied` when there is nothing to undo any more, because it ended.
        """
        if self.sock is not None:
            self.sock.close()
        started = [t for t in self.threads.values() if t.insn]
        self._uncover()
        if self.threads and self.leader in started:
            self._undo_calls()
        for t in started:
            if t is not self.leader:
                t.restore()  # it never left its first stop
        if not self.threads:
            raise ProcessLookupError(errno.ESRCH, f"no process {self.pid}")
        try:
            freeze()  # traced threads count as frozen; they stay so when we let go
        finally:
            for t in self.threads.values():
                t.detach()

    def bury(self) -> None:
        """When the process ended in our hands: its parent cannot wait for it before we, as the tracer, have waited for every thread."""
        for tid in self.threads:
            if tid == self.pid and procfs.state(tid) is not None and procfs.stat(tid).ppid == os.getpid():
                continue  # our own child: its status is for whoever started it
            while not reaped(tid):
                time.sleep(0.0005)  # it is on its way: only SIGKILL ends a thread in a ptrace stop

    def _undo_calls(self) -> None:
        p = self.leader
        called = bool(self.areas or self.opened)
        if self.holder is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.holder, signal.SIGKILL)
                os.waitpid(self.holder, WALL)  # the tracer's wait …
            p.syscall("wait4", self.holder, 0, WALL, 0)  # … and the parent's, else it keeps a zombie
        if self.tid_state is not None:
            p.syscall("set_tid_address", self.tid_state[0])
            p.syscall("set_robust_list", *self.tid_state[1:])
        for fd in self._cleared:
            if fd in self.cloexec:
                p.syscall("fcntl", fd, F_SETFD, FD_CLOEXEC)
        for fd in self.opened:
            p.syscall("close", fd)
        if not called:
            p.restore()
            return
        p.insn = self.insn  # not in the page that goes now
        with self._landing():
            for address, size in self.areas:
                p.syscall("munmap", address, size)
            p.leave_call()
        p.restore()

    # -- the calls --------------------------------------------------------------------------------------------------------------

    def _mmap(self, address: int, size: int, prot: int) -> int:
        self.areas.append((address, size))
        self.journal(self)  # before it is there: to unmap what is not is no error
        return self.leader.syscall("mmap", address, size, prot, MAP_PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)

    def _map_code(self, address: int) -> None:
        """From here on the leader makes its calls in a page of ours, where it parks itself should we die.

        Where executable memory is refused (SELinux, memory-deny-write-execute) or cannot be written, the vdso has to do: then a death of
        ours in the middle of a later call loses the process.
        """
        with self._landing():
            try:
                self._mmap(address, PAGE, PROT_READ | PROT_EXEC)
                write_code(self.pid, address, SYSCALL_THEN_PAUSE)
            except OSError as e:
                if e.errno not in NOT_WRITABLE:
                    raise
            else:
                self.leader.insn = address
                self.leader.park()  # from the call's end, in that page

    @contextlib.contextmanager
    def _landing(self) -> Iterator[None]:
        """For a call in the process's own code: should we die, the leader would run on behind the call, into the old program.  So for
        this while our code stands there, in a private copy of that page, and the leader parks itself."""
        try:
            original = read_code(self.pid, self.insn, len(SYSCALL_THEN_PAUSE))
            if len(original) == len(SYSCALL_THEN_PAUSE):
                self.covered = original
                self.journal(self)
                write_code(self.pid, self.insn, SYSCALL_THEN_PAUSE)
        except OSError as e:
            if e.errno not in NOT_WRITABLE:
                raise
            self.covered = None
        yield
        self._uncover()

    def _uncover(self) -> None:
        if self.covered is not None:
            write_code(self.pid, self.insn, self.covered)
            self.covered = None

    def _make_link(self) -> tuple[int, int]:
        """A socketpair made inside of the process; our end is taken out of it: no path, no permission, no common namespace needed."""
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        self.leader.syscall("socketpair", socket.AF_UNIX, kind, 0, self._scratch)
        link_fd, peer = struct.unpack("ii", libc.process_vm_readv(self.pid, self._scratch, 8))
        self.opened += [link_fd, peer]
        self.sock = socket.socket(fileno=libc.pidfd_getfd(self.pid, peer))
        return link_fd, peer

    def _pass_binary(self, link_fd: int) -> int:
        """The open binary travels as a descriptor: it need not be visible in the process's own root."""
        assert self.sock is not None
        fd = os.open(paths.libexec() / "deputy", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(self.sock, [b"x"], [fd])
        finally:
            os.close(fd)
        # struct msghdr at +0, struct iovec at +64, one byte of data at +96, control message at +128
        at = self._scratch
        message = struct.pack("QIxxxxQQQQi", 0, 0, at + 64, 1, at + 128, 64, 0).ljust(64, b"\0") + struct.pack("QQ", at + 96, 1)
        libc.process_vm_writev(self.pid, at, message)
        self.leader.syscall("recvmsg", link_fd, at, MSG_CMSG_CLOEXEC)
        length, _, _, binary = struct.unpack("Qiii", libc.process_vm_readv(self.pid, at + 128, 20))
        if length < 20:
            raise OSError(errno.EMFILE, "the process has no free descriptor")
        self.opened.append(int(binary))
        return int(binary)

    def _hold(self) -> None:
        """Park the old address space in a child that shares it: no copy, no descriptor, no signal reaches it, it ends with the deputy."""
        p, at = self.leader, self._scratch
        # execve() clears *clear_child_tid and walks the robust futex list, in the very memory that we hold
        p.syscall("prctl", PR_GET_TID_ADDRESS, at)
        p.syscall("get_robust_list", 0, at + 8, at + 16)
        tid_address, head, length = struct.unpack("QQQ", libc.process_vm_readv(self.pid, at, 24))
        self.tid_state = (tid_address, head, length or ROBUST_LIST_HEAD)
        self.journal(self)
        p.syscall("set_tid_address", 0)
        p.syscall("set_robust_list", 0, ROBUST_LIST_HEAD)
        p.add_options(PTRACE_O_TRACECLONE)
        # exit signal 0: neither the parent nor its wait() ever hear of this child
        self.holder = p.syscall("clone", libc.CLONE_VM | libc.CLONE_FILES, 0, event=PTRACE_EVENT_CLONE)
        self.journal(self)
        h = Tracee(self.holder, seize=False)
        h.wait_stop()
        h.begin(p.insn)
        h.syscall("close_range", 0, 0xFFFFFFFF, libc.CLOSE_RANGE_UNSHARE)
        h.syscall("setsid")  # out of reach of the terminal and of fg
        libc.process_vm_writev(self.pid, at, b"held-memory\0")
        h.syscall("prctl", libc.PR_SET_NAME, at)
        h.syscall("prctl", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        h.park()
        h.detach()

    def _write_arguments(self, binary: int, argv: list[bytes], env: list[bytes]) -> None:
        blob, pointers, at = b"\0", [], self._scratch
        for strings in (argv, env):
            for s in strings:
                pointers.append(at + len(blob))
                blob += s + b"\0"
            pointers.append(0)
        blob += b"\0" * (-len(blob) % 8)
        vector = at + len(blob)
        libc.process_vm_writev(self.pid, at, blob + struct.pack(f"{len(pointers)}Q", *pointers))
        self._exec = (binary, at, vector, vector + 8 * (len(argv) + 1))


async def convert_in_helper(pid: int, cgroup_path: str, drop_signals: int = 0, *, hold: bool = False) -> Deputy:
    """:func:`convert` in a helper process of its own, for a ``pid`` that stands frozen in the cgroup: it is thawed on the way, and frozen
    again where the conversion fails (:class:`DeputyError`)."""
    # asyncio is wanted on this side only: the helper, which imports this module too, starts in half the time without it
    from mig.deputy.helper import Helper

    with Helper() as helper:
        return await helper.convert(pid, cgroup_path, drop_signals, hold=hold)


def free_range(pid: int, size: int) -> int:
    """An address in the middle of the largest gap between the process's mappings; raises ``OSError`` (``ENOMEM``) if it is too small."""
    maps = [m for m in procfs.maps(pid) if m.path != "[vsyscall]"]
    room, start = max(((b.start - a.end, a.end) for a, b in pairwise(maps)), default=(0, 0))
    if room < size:
        raise OSError(errno.ENOMEM, f"process {pid} has no room for {size} bytes")
    return start + (room - size) // 2 // PAGE * PAGE


def read_code(pid: int, address: int, size: int) -> bytes:
    """That many bytes, or fewer at the end of a mapping; raises ``OSError``."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def write_code(pid: int, address: int, code: bytes) -> None:
    """Write into memory that the process itself cannot write; raises ``OSError`` where the kernel forbids it even to its tracer."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, code, address)
    finally:
        os.close(fd)


def close_on_exec(pid: int) -> set[int]:
    """The descriptors of ``pid`` that have FD_CLOEXEC."""
    out = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        flags = re.search(rb"^flags:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_bytes(), re.M)
        if flags and int(flags[1], 8) & procfs.O_CLOEXEC:
            out.add(int(fd))
    return out
