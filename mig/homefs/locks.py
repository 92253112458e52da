"""File locks of one mount, held at home: flock(2) on the guest's own open file, fcntl(2) locks on one description per (inode, owner).

Locks are seen by home's processes and the other way round, since they are home's kernel's.  A lock owner of the guest becomes an open
file description here (F_OFD_SETLK); like a process's locks it is dropped as a whole when the owner closes any descriptor of the file.

A request that has to wait does so in a thread of its own.  It must end when the host interrupts it (a signal for the guest, or the
freezer): the kernel waits for our answer, uninterruptibly.  So the wait is a system call that a signal breaks off.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mig.homefs import protocol as p
from mig.homefs import syscalls as sc
from mig.homefs.handles import HandleTable
from mig.homefs.nodes import NodeTable

WAKE = signal.SIGUSR1
PATIENCE_S = 1.0
"""How long locks that were let go for a move are tried to be taken again."""
EARLY_S = 10.0
"""How long an interrupt is remembered that overtook its request (they travel on different connections)."""
_FLOCK = {sc.F_RDLCK: fcntl.LOCK_SH, sc.F_WRLCK: fcntl.LOCK_EX, sc.F_UNLCK: fcntl.LOCK_UN}
_LINE = re.compile(rb"^lock:\s+\d+: (\S+)\s+\S+\s+(READ|WRITE)\s+\S+ \S+ (\d+) (\d+|EOF)$", re.M)

Held = tuple[Literal["read", "write"], int, int]
"""(type, start, len); len 0: to the end of the file and beyond."""


def allow_interrupts() -> None:
    """Let :data:`WAKE` break off a waiting system call; once, in the main thread, before any lock is asked for."""
    signal.signal(WAKE, lambda *_: None)


def held(fd: int) -> list[Held]:
    """The locks that belong to this open file description, as the kernel itself has them after splits and merges."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as f:
        info = f.read()
    out: list[Held] = []
    for _, kind, start, end in _LINE.findall(info):
        length = 0 if end == b"EOF" else int(end) - int(start) + 1
        out.append(("read" if kind == b"READ" else "write", int(start), length))
    return out


@dataclass(slots=True, eq=False)
class Owner:
    """What holds one lock owner's fcntl locks on one inode."""

    fd: int
    pid: int
    fh: int
    key: tuple[int, int]


class Waiter:
    """A system call that waits in its own thread, and can be broken off."""

    def __init__(self, call: Callable[[], object], answer: Callable[[int], None]) -> None:
        """``answer`` gets 0 or an errno, once, in the waiting thread."""
        self._call, self._answer = call, answer
        self._cancelled = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lock-wait", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        """Have it answer EINTR unless it has got the lock already; returns when it has answered."""
        self._cancelled = True
        while not self._done.wait(0.002):  # a signal that comes just before the system call begins is lost: send another
            if self._thread.native_id is not None:
                sc.signal_thread(self._thread.native_id, WAKE)

    def _run(self) -> None:
        error = errno.EINTR
        try:
            while not self._cancelled:
                try:
                    self._call()
                    error = 0
                    break
                except InterruptedError:
                    continue
                except OSError as e:
                    error = e.errno or errno.EIO
                    break
        finally:
            self._done.set()
            self._answer(error)


@dataclass(slots=True, eq=False)
class Inheritance:
    """A range whose lock passes to ``owner`` when the guest's original at home ends."""

    owner: Owner
    start: int
    end: int
    waiter: Waiter


class LockTable:
    """All locks and waiting requests of one mount."""

    def __init__(self, mount: str, nodes: NodeTable, handles: HandleTable, ancestors: set[int]) -> None:
        """``ancestors``: pids at home of the guest's frozen original, whose fcntl locks the guest inherits (may change at any time)."""
        self._mount, self._nodes, self._handles, self._ancestors = mount, nodes, handles, ancestors
        self._owners: dict[tuple[int, int], Owner] = {}  # (node, lock owner)
        self._waiters: dict[int, Waiter] = {}  # by the request's unique number
        self._early: dict[int, float] = {}
        self._inheriting: list[Inheritance] = []
        self._dropped: list[tuple[int, str, Held]] = []
        self._lock = threading.Lock()

    # -- requests ------------------------------------------------------------------------------------------------------------------

    def set(self, node: int, body: memoryview) -> None:
        """SETLK: take, change or drop a lock without waiting; raises ``OSError`` (``EAGAIN``) when another holds it."""
        try:
            self._prepared(node, body, wait=False)()
        except BlockingIOError:
            if not self._inherit(node, body):
                raise

    def wait(self, node: int, body: memoryview, unique: int, answer: Callable[[int], None]) -> None:
        """SETLKW: as :meth:`set`, waiting; ``answer`` is called with 0 or an errno, perhaps later and in another thread."""
        with self._lock:
            now = time.monotonic()
            self._early = {u: t for u, t in self._early.items() if now - t < EARLY_S}
            interrupted = self._early.pop(unique, None) is not None
        try:
            self.set(node, body)
        except BlockingIOError:
            pass  # held by another: wait
        except OSError as e:
            return answer(e.errno or errno.EIO)
        else:
            return answer(0)
        if interrupted:
            return answer(errno.EINTR)
        call = self._prepared(node, body, wait=True)

        def done(error: int) -> None:
            with self._lock:
                self._waiters.pop(unique, None)
            answer(error)

        waiter = Waiter(call, done)
        with self._lock:
            self._waiters[unique] = waiter
            interrupted = self._early.pop(unique, None) is not None
        waiter.start()
        if interrupted:
            waiter.cancel()

    def interrupt(self, unique: int) -> None:
        """INTERRUPT: the host no longer wants to wait for the request ``unique``."""
        with self._lock:
            waiter = self._waiters.get(unique)
            if waiter is None:
                self._early[unique] = time.monotonic()
        if waiter is not None:
            waiter.cancel()

    def test(self, node: int, body: memoryview) -> bytes:
        """GETLK: who would be in the way; a pid of home means nothing on the host and is given as 0."""
        fh, owner, start, end, kind, pid, _, _ = p.LK_IN.unpack_from(body)
        fd = self._owner(node, fh, owner, pid).fd
        kind, start, length, _ = sc.ofd_lock(fd, sc.F_OFD_GETLK, kind, start, _length(start, end))
        return p.LK_OUT.pack(start, start + length - 1 if length else p.OFFSET_MAX, kind, 0)

    def drop_owner(self, node: int, owner: int) -> None:
        """FLUSH: the owner closed a descriptor of the file, which drops all its fcntl locks there."""
        with self._lock:
            o = self._owners.pop((node, owner), None)
        if o is not None:
            self._disinherit(o)
            os.close(o.fd)

    # -- questions and orders of the home agent --------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Every lock held: kind, type, dev, ino, start, len, owner (fcntl), fh, and the pid that asked, as the keeper numbers it."""
        out: list[dict[str, Any]] = []
        with self._lock:
            owners = list(self._owners.items())
        for (_, owner), o in owners:
            row = {"mount": self._mount, "kind": "posix", "dev": o.key[0], "ino": o.key[1], "owner": owner, "fh": o.fh, "pid": o.pid}
            out += [{**row, "type": t, "start": start, "len": length} for t, start, length in held(o.fd)]
        for fh, f in list(self._handles.files.items()):
            row = {"mount": self._mount, "kind": "flock", "dev": f.key[0], "ino": f.key[1], "owner": 0, "fh": fh, "pid": f.flock_pid}
            out += [{**row, "type": t, "start": 0, "len": 0} for t, _, _ in (held(f.fd) if f.flock_pid >= 0 else [])]
        return out

    def drop_all(self) -> None:
        """Let every lock go, so that the guest's copy on another mount can take them; :meth:`retake` is the undo."""
        with self._lock:
            owners = list(self._owners.values())
        for o in owners:
            for lock in held(o.fd):
                self._dropped.append((o.fd, "posix", lock))
            sc.ofd_lock(o.fd, sc.F_OFD_SETLK, sc.F_UNLCK, 0, 0)
        for f in list(self._handles.files.values()):
            if f.flock_pid >= 0 and (locks := held(f.fd)):
                self._dropped.append((f.fd, "flock", locks[0]))
                sc.flock(f.fd, fcntl.LOCK_UN)

    def retake(self) -> int:
        """Take again what :meth:`drop_all` dropped; returns how many locks another process has taken meanwhile and still has in a moment:
        the copy at home, if it was killed just now, still has them."""
        dropped, self._dropped = self._dropped, []
        deadline = time.monotonic() + PATIENCE_S
        while (left := [d for d in dropped if not _taken(*d)]) and time.monotonic() < deadline:
            dropped = left
            time.sleep(0.01)
        return len(left)

    def give_up(self) -> None:
        """The guest's copy on this mount will never run: what its restore took is let go, unless it is the mount that :meth:`drop_all` was
        for: the guest's own, which goes on."""
        if not self._dropped:
            self.close()
            for f in list(self._handles.files.values()):
                if f.flock_pid >= 0:
                    sc.flock(f.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """The mount is gone: break off all that waits, drop all fcntl locks (flocks go with the handles)."""
        with self._lock:
            waiters = [*self._waiters.values(), *(i.waiter for i in self._inheriting)]
        for w in waiters:
            w.cancel()
        for node, owner in list(self._owners):
            self.drop_owner(node, owner)

    # -- inside ----------------------------------------------------------------------------------------------------------------------

    def _prepared(self, node: int, body: memoryview, *, wait: bool) -> Callable[[], None]:
        fh, owner, start, end, kind, pid, flags, _ = p.LK_IN.unpack_from(body)
        if flags & p.LK_FLOCK:
            f = self._handles.file(fh)
            f.flock_pid = pid
            operation = _FLOCK[kind] | (0 if wait else fcntl.LOCK_NB)
            return lambda: sc.flock(f.fd, operation)
        if kind == sc.F_UNLCK and (node, owner) not in self._owners:
            return lambda: None  # holds nothing here
        o = self._owner(node, fh, owner, pid)
        if kind == sc.F_UNLCK:
            self._disinherit(o, start, end)
        return self._call(o.fd, sc.F_OFD_SETLKW if wait else sc.F_OFD_SETLK, kind, start, _length(start, end))

    @staticmethod
    def _call(owner_fd: int, command: int, kind: int, start: int, length: int) -> Callable[[], None]:
        def call() -> None:
            # a duplicate: the owner may close the file, and the number be given away, while this waits
            fd = os.dup(owner_fd)
            try:
                sc.ofd_lock(fd, command, kind, start, length)
            finally:
                os.close(fd)

        return call

    def _inherit(self, node: int, body: memoryview) -> bool:
        """Whether the lock that is in the way is the original's own: then it counts as taken, and is as soon as the original ends.

        An original that was frozen for the move cannot let go of fcntl locks: nobody but the process itself can.
        """
        fh, owner, start, end, kind, pid, flags, _ = p.LK_IN.unpack_from(body)
        if flags & p.LK_FLOCK or not self._ancestors:
            return False
        o, length = self._owner(node, fh, owner, pid), _length(start, end)
        found, _, _, holder = sc.ofd_lock(o.fd, sc.F_OFD_GETLK, kind, start, length)
        if found == sc.F_UNLCK or holder not in self._ancestors:
            return False

        def done(_: int) -> None:
            with self._lock:
                self._inheriting.remove(inheritance)

        inheritance = Inheritance(o, start, end, Waiter(self._call(o.fd, sc.F_OFD_SETLKW, kind, start, length), done))
        with self._lock:
            self._inheriting.append(inheritance)
        inheritance.waiter.start()
        return True

    def _disinherit(self, owner: Owner, start: int = 0, end: int = p.OFFSET_MAX) -> None:
        """The guest gave up a lock that it may not even have got yet."""
        with self._lock:
            given_up = [i for i in self._inheriting if i.owner is owner and i.start <= end and start <= i.end]
        for i in given_up:
            i.waiter.cancel()

    def _owner(self, node: int, fh: int, owner: int, pid: int) -> Owner:
        o = self._owners.get((node, owner))
        if o is not None:
            o.pid = pid or o.pid
            return o
        path, f = self._nodes.path(node), self._handles.file(fh)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # a read-only file system, or a running program (ETXTBSY): the guest's own way of opening it will do
            fd = os.open(path, f.flags & os.O_ACCMODE | os.O_CLOEXEC)
        with self._lock:
            o = self._owners.setdefault((node, owner), Owner(fd, pid, fh, f.key))
        if o.fd != fd:
            os.close(fd)
        return o


def _taken(fd: int, kind: str, lock: Held) -> bool:
    t, start, length = lock
    wanted = sc.F_WRLCK if t == "write" else sc.F_RDLCK
    try:
        if kind == "flock":
            sc.flock(fd, _FLOCK[wanted] | fcntl.LOCK_NB)
        else:
            sc.ofd_lock(fd, sc.F_OFD_SETLK, wanted, start, length)
    except BlockingIOError:
        return False
    return True


def _length(start: int, end: int) -> int:
    return 0 if end >= p.OFFSET_MAX else end - start + 1
