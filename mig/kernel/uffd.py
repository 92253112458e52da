"""userfaultfd(2) as a pager uses it: place pages, wake threads, read events."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

PAGE = 4096
UFFD_API = 0xAA
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
UFFDIO_WAKE, UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_CONTINUE = 0x8010AA02, 0xC028AA03, 0xC020AA04, 0xC020AA07

UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
UFFD_FEATURE_EVENT_FORK = 1 << 1
UFFD_FEATURE_EVENT_REMAP = 1 << 2
UFFD_FEATURE_EVENT_REMOVE = 1 << 3
UFFD_FEATURE_EVENT_UNMAP = 1 << 6
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP = 1, 2

EVENT_PAGEFAULT, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
MESSAGE = 32
"""Bytes of a ``struct uffd_msg``."""


class _Copy(ctypes.Structure):
    _fields_ = [
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("copied", ctypes.c_int64),
    ]


class _ZeroPage(ctypes.Structure):
    _fields_ = [("start", ctypes.c_uint64), ("len", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("zeroed", ctypes.c_int64)]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
_Pair = ctypes.c_uint64 * 2


@dataclass(frozen=True)
class Event:
    """One message: PAGEFAULT (``a`` the address), REMOVE and UNMAP (``[a, b)``), REMAP (``a`` to ``b``, ``n`` bytes), FORK (``a``: fd)."""

    kind: int
    a: int
    b: int = 0
    n: int = 0


def copy(fd: int, dst: int, src: int, length: int) -> tuple[int, int]:
    """UFFDIO_COPY from our memory at ``src``, once: bytes placed, and the errno of what stopped it (0: nothing did)."""
    c = _Copy(dst, src, length, 0, 0)
    if _libc.ioctl(fd, UFFDIO_COPY, ctypes.byref(c)) == 0:
        return length, 0
    return max(0, int(c.copied)), ctypes.get_errno()


def zeropage(fd: int, start: int, length: int) -> tuple[int, int]:
    """UFFDIO_ZEROPAGE, once: bytes placed, and the errno of what stopped it."""
    z = _ZeroPage(start, length, 0, 0)
    if _libc.ioctl(fd, UFFDIO_ZEROPAGE, ctypes.byref(z)) == 0:
        return length, 0
    return max(0, int(z.zeroed)), ctypes.get_errno()


def wake(fd: int, start: int, length: int) -> None:
    """UFFDIO_WAKE: who waits there faults again; a range that is not registered any more has nobody who waits."""
    _libc.ioctl(fd, UFFDIO_WAKE, ctypes.byref(_Pair(start, length)))


def unregister(fd: int, start: int, length: int) -> bool:
    """UFFDIO_UNREGISTER; False when the range is not mapped like that any more."""
    return bool(_libc.ioctl(fd, UFFDIO_UNREGISTER, ctypes.byref(_Pair(start, length))) == 0)


def _probe(fd: int, addr: int) -> int:
    request = (ctypes.c_uint64 * 4)(addr, PAGE, 0, 0)
    if _libc.ioctl(fd, UFFDIO_CONTINUE, ctypes.byref(request)) == 0:
        return 0
    return ctypes.get_errno()


def changing(fd: int) -> bool:
    """Whether a call of the process that changes its address space has not told of itself yet: no page can be placed now."""
    return _probe(fd, PAGE) == errno.EAGAIN


def registered(fd: int, addr: int) -> bool:
    """Whether private memory that is registered lies at this address.

    UFFDIO_CONTINUE is for shared memory: for private memory it does nothing and says EINVAL, ENOENT where nothing is registered.  True
    as well while that cannot be asked, because a call is under way.
    """
    return _probe(fd, addr) in (errno.EINVAL, errno.EAGAIN)


def parse(messages: bytes | bytearray | memoryview) -> list[Event]:
    """The events in what a read gave."""
    out = []
    for at in range(0, len(messages) - MESSAGE + 1, MESSAGE):
        kind = messages[at]
        if kind == EVENT_PAGEFAULT:
            _, address = struct.unpack_from("<QQ", messages, at + 8)
            out.append(Event(kind, address & ~(PAGE - 1)))
        elif kind == EVENT_FORK:
            out.append(Event(kind, struct.unpack_from("<I", messages, at + 8)[0]))
        elif kind == EVENT_REMAP:
            out.append(Event(kind, *struct.unpack_from("<QQQ", messages, at + 8)))
        elif kind in (EVENT_REMOVE, EVENT_UNMAP):
            out.append(Event(kind, *struct.unpack_from("<QQ", messages, at + 8)))
    return out


def message(e: Event) -> bytes:
    """An event (no fault) as the kernel would write it."""
    if e.kind == EVENT_FORK:
        return struct.pack("<B7xI", e.kind, e.a).ljust(MESSAGE, b"\0")
    return struct.pack("<B7xQQQ", e.kind, e.a, e.b, e.n)


def read(fd: int, limit: int = 16) -> list[Event]:
    """What there is now, without waiting.  Raises ``OSError``; one of these descriptors that nobody serves any more gives nothing."""
    try:
        return parse(os.read(fd, limit * MESSAGE))
    except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EINTR):
            return []
        raise
