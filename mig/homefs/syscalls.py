"""System calls that Python's ``os`` lacks, or does for the whole process where the kernel does it per thread (x86-64 numbers).

The credential calls go through ``PyDLL``: they take less than a microsecond, and giving up the interpreter lock for them costs more.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_char_p, c_int, c_int64, c_long, c_uint, c_void_p
from typing import NoReturn

NR_setgroups, NR_setfsuid, NR_setfsgid, NR_capset, NR_tgkill = 116, 122, 123, 126, 234
CAPS_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4
"""CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: they come and go with setfsuid."""
CAPS_OF_IDS = 1 << 6 | 1 << 7
"""SETGID, SETUID"""
_CAPABILITY_VERSION_3 = 0x20080522
AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2


class timespec(ctypes.Structure):
    _fields_ = [("tv_sec", c_int64), ("tv_nsec", c_int64)]


class flock_t(ctypes.Structure):
    """struct flock of fcntl(2)."""

    _fields_ = [("l_type", ctypes.c_short), ("l_whence", ctypes.c_short), ("l_start", c_int64), ("l_len", c_int64), ("l_pid", c_int)]


_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None, use_errno=True)
_held.syscall.argtypes = [c_long, c_long, c_void_p]
_held.syscall.restype = c_long
_libc.renameat2.argtypes = [c_int, c_char_p, c_int, c_char_p, c_uint]
_libc.fallocate.argtypes = [c_int, c_int, c_int64, c_int64]
_libc.utimensat.argtypes = [c_int, c_char_p, c_void_p, c_int]
_libc.flock.argtypes = [c_int, c_int]
_libc.fcntl.argtypes = [c_int, c_int, c_void_p]


def _fail() -> NoReturn:
    e = ctypes.get_errno()
    raise OSError(e, os.strerror(e))


def setfsuid(uid: int) -> None:
    """The calling thread's; the FS capabilities go with uid 0 and come back with it.  The call itself never reports an error."""
    _held.syscall(NR_setfsuid, uid, None)


def setfsgid(gid: int) -> None:
    """The calling thread's."""
    _held.syscall(NR_setfsgid, gid, None)


def setgroups(gids: ctypes.Array[c_uint]) -> None:
    """The calling thread's only, unlike glibc's and Python's."""
    if _held.syscall(NR_setgroups, len(gids), ctypes.addressof(gids)) < 0:
        _fail()


def keep_capabilities(mask: int) -> None:
    """The calling thread keeps only these, for ever."""
    header = (c_uint * 2)(_CAPABILITY_VERSION_3, 0)
    data = (c_uint * 6)(mask, mask, 0, 0, 0, 0)
    if _libc.syscall(c_long(NR_capset), ctypes.byref(header), ctypes.byref(data)) < 0:
        _fail()


def signal_thread(tid: int, sig: int) -> None:
    """tgkill(2) within this process; a thread that has ended is no error."""
    if _libc.syscall(c_long(NR_tgkill), c_long(os.getpid()), c_long(tid), c_long(sig)) < 0 and ctypes.get_errno() != errno.ESRCH:
        _fail()


def renameat2(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
    if _libc.renameat2(src_dir, src, dst_dir, dst, flags) < 0:
        _fail()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length) < 0:
        _fail()


def utimensat(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Times as (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT); follows links, as a path below /proc/self/fd needs it."""
    if _libc.utimensat(AT_FDCWD, path, ctypes.byref((timespec * 2)(timespec(*atime), timespec(*mtime))), 0) < 0:
        _fail()


def flock(fd: int, operation: int) -> None:
    """As ``fcntl.flock``, but a signal ends it with EINTR, where Python would begin again."""
    if _libc.flock(fd, operation) < 0:
        _fail()


def ofd_lock(fd: int, command: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """fcntl(2) with an F_OFD_ command; returns (type, start, len, pid) as the kernel left them.  EINTR as in :func:`flock`."""
    lk = flock_t(kind, os.SEEK_SET, start, length, 0)
    if _libc.fcntl(fd, command, ctypes.byref(lk)) < 0:
        _fail()
    return lk.l_type, lk.l_start, lk.l_len, lk.l_pid
