"""Does a thread of the guest wait to read a certain pipe or terminal?  Answered from /proc, without touching the guest.

A blocked thread's system call stands in /proc/TID/syscall.  x86-64 numbers only: a 32-bit guest is taken for one that never waits.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

SOME = 4096
"""Bytes to pass on when the guest waits in poll or the like and does not say how much it will read: what a terminal's line can hold."""
O_NONBLOCK, O_ASYNC, O_ACCMODE = 0o4000, 0o20000, 3
_POLLIN = 0x001 | 0x040  # POLLIN, POLLRDNORM; EPOLL's bits are the same
_MAX_POLLED = 1024  # descriptors of one poll or select that we look at

READ, POLL, READV, SELECT, SENDFILE, RESTART, EPOLL_WAIT = 0, 7, 19, 23, 40, 219, 232
PSELECT6, PPOLL, SPLICE, TEE, EPOLL_PWAIT, PREADV2, EPOLL_PWAIT2 = 270, 271, 275, 276, 281, 327, 441
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


Matches = Callable[[int, int, str], bool]
"""Is descriptor ``fd`` of ``pid``, whose link in /proc says ``target``, the one in question?  Made by :func:`pipe` and :func:`tty`."""


@dataclass(frozen=True)
class Demand:
    """Somebody waits.  ``tid`` and ``sleeps`` (its voluntary context switches) tell one wait from the next; both are 0 for a descriptor
    that is read without waiting (O_NONBLOCK, O_ASYNC)."""

    count: int
    tid: int = 0
    sleeps: int = 0


def pipe(inode: int) -> Matches:
    """Matches the descriptors of the pipe with this inode number."""
    name = f"pipe:[{inode}]"
    return lambda pid, fd, target: target == name


def tty(device: int) -> Matches:
    """Matches the descriptors of the terminal with this device number, and of /dev/tty.

    The link is looked at first: ``stat`` on a file of the guest could be a request to its home.
    """
    looks = re.compile(r"(^|/)pts/\d+$|/dev/(tty\w*|console)$")

    def matches(pid: int, fd: int, target: str) -> bool:
        if not looks.search(target):
            return False
        st = os.stat(f"/proc/{pid}/fd/{fd}")
        return st.st_rdev in (device, os.makedev(5, 0))

    return matches


def waiting(pids: Iterable[int], matches: Matches) -> Iterator[Demand]:
    """Every wait of a thread of ``pids`` for one of the matching descriptors; processes that end meanwhile are passed over."""
    for pid in pids:
        with contextlib.suppress(*_GONE):
            fds = _descriptors(pid, matches)
            if not fds:
                continue
            for tid in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(*_GONE):
                    count = _waits(pid, int(tid), set(fds))
                    if count:
                        yield Demand(count, int(tid), _sleeps(pid, int(tid)))
            if any(flags & (O_NONBLOCK | O_ASYNC) for flags in fds.values()):
                yield Demand(SOME)


def _descriptors(pid: int, matches: Matches) -> dict[int, int]:
    """Number and flags of the matching descriptors that can be read."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(*_GONE):
            if matches(pid, int(name), os.readlink(f"/proc/{pid}/fd/{name}")):
                flags = _fdinfo_flags(pid, int(name))
                if flags & O_ACCMODE != os.O_WRONLY:
                    found[int(name)] = flags
    return found


def _fdinfo_flags(pid: int, fd: int) -> int:
    with open(f"/proc/{pid}/fdinfo/{fd}") as f:
        for line in f:
            if line.startswith("flags:"):
                return int(line.split()[1], 8)
    return 0


def _sleeps(pid: int, tid: int) -> int:
    with open(f"/proc/{pid}/task/{tid}/status") as f:
        for line in f:
            if line.startswith("voluntary_ctxt_switches:"):
                return int(line.split()[1])
    return 0


def _waits(pid: int, tid: int, fds: set[int]) -> int:
    """How many bytes thread ``tid`` waits to read from one of ``fds``; 0: it does something else."""
    with open(f"/proc/{pid}/task/{tid}/syscall") as f:
        words = f.read().split()
    if len(words) < 7:  # "running", or blocked outside a system call
        return 0
    nr, a = int(words[0]), [int(x, 16) for x in words[1:7]]
    if nr == READ:
        return a[2] if _fd(a[0]) in fds else 0
    if nr in (READV, PREADV2, TEE):
        return SOME if _fd(a[0]) in fds else 0
    if nr == SPLICE:
        return a[4] if _fd(a[0]) in fds else 0
    if nr == SENDFILE:
        return a[3] if _fd(a[1]) in fds else 0
    if nr in (POLL, PPOLL, RESTART):  # RESTART: a poll that a signal or the freezer interrupted keeps its arguments
        return SOME if _in_poll(pid, a[0], a[1], fds) else 0
    if nr in (SELECT, PSELECT6):
        return SOME if _in_select(pid, a[1], _fd(a[0]), fds) else 0
    if nr in (EPOLL_WAIT, EPOLL_PWAIT, EPOLL_PWAIT2):
        return SOME if _in_epoll(pid, _fd(a[0]), fds) else 0
    return 0


def _fd(word: int) -> int:
    """Descriptors are 32 bits wide; the upper half of the register is not defined."""
    return word & 0xFFFFFFFF


def _memory(pid: int, address: int, n: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, n, address)
    except (OSError, OverflowError):
        return b""  # not a pointer: a restarted call of another kind
    finally:
        os.close(fd)


def _in_poll(pid: int, address: int, n: int, fds: set[int]) -> bool:
    if not 0 < n <= _MAX_POLLED:
        return False
    table = _memory(pid, address, n * 8)
    return len(table) == n * 8 and any(fd in fds and events & _POLLIN for fd, events, _ in struct.iter_unpack("<ihh", table))


def _in_select(pid: int, address: int, n: int, fds: set[int]) -> bool:
    if not address or not 0 < n <= _MAX_POLLED:
        return False
    bits = int.from_bytes(_memory(pid, address, (n + 7) // 8), "little")
    return any(fd < n and bits >> fd & 1 for fd in fds)


def _in_epoll(pid: int, epoll: int, fds: set[int]) -> bool:
    with open(f"/proc/{pid}/fdinfo/{epoll}") as f:
        for line in f:
            if line.startswith("tfd:"):
                words = line.split()
                if int(words[1]) in fds and int(words[3], 16) & _POLLIN:
                    return True
    return False
