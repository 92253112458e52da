"""Which pages of a running process were written: tracked from outside, by a userfaultfd in its asynchronous write-protect mode.

The process gets no message and no signal, and stops for a moment only at the start, when it makes the userfaultfd for us (see
:mod:`mig.memory.inject`).  Afterwards the kernel clears a bit in the page table at the first write to a page (Linux 6.7).  When the
descriptor is closed, by us or by our death, the kernel takes the bits away: the process is left as it was.

What is trusted is only the positive answer "mapped as it was when we began, there, and not written": new, moved and remapped areas are not
registered, so they never give it; discarded pages are not there; the zero page is not counted as there.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Sequence

from mig.kernel import pagemap, uffd
from mig.kernel.libc import _libc as libc
from mig.kernel.libc import oserror, userfaultfd
from mig.memory.ranges import join

UFFD_USER_MODE_ONLY = 1
"""Enough for us, and allowed to every process: asynchronous write faults never wait for anybody, wherever they happen."""
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY
FEATURES = uffd.UFFD_FEATURE_PAGEFAULT_FLAG_WP | uffd.UFFD_FEATURE_WP_UNPOPULATED | uffd.UFFD_FEATURE_WP_ASYNC

libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]

_THERE = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED
_TRACKED = pagemap.PAGE_IS_WPALLOWED
_WRITTEN = pagemap.PAGE_IS_WRITTEN
_ZERO = pagemap.PAGE_IS_PFNZERO


def available() -> bool:
    """Whether this kernel can track writes like that."""
    try:
        fd = userfaultfd(FLAGS)
    except OSError:
        return False
    try:
        enable(fd)
        own = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            list(pagemap.scan(own, 0, pagemap.PAGE, mask=_TRACKED, returned=_TRACKED))
        finally:
            os.close(own)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def enable(fd: int, features: int = FEATURES) -> None:
    """UFFDIO_API with what tracking needs (or other features); raises ``OSError`` (``EINVAL``) where the kernel is too old."""
    request = (ctypes.c_uint64 * 3)(uffd.UFFD_API, features, 0)
    if libc.ioctl(fd, uffd.UFFDIO_API, ctypes.addressof(request)) < 0:
        oserror("ioctl(UFFDIO_API)")


def register(fd: int, ranges: Iterable[tuple[int, int]], mode: int = uffd.UFFDIO_REGISTER_MODE_WP) -> list[tuple[int, int]]:
    """Track these ranges, which must be whole areas of a process that stands still; returns those that could be.

    A range that is a part of an area would cut it in two, and the process could not ``mremap`` it as one any more.  Raises ``OSError``.
    """
    out = []
    for start, end in ranges:
        request = (ctypes.c_uint64 * 4)(start, end - start, mode, 0)
        if libc.ioctl(fd, uffd.UFFDIO_REGISTER, ctypes.addressof(request)) == 0:
            out.append((start, end))
        elif (e := ctypes.get_errno()) not in (errno.EINVAL, errno.EBUSY, errno.EPERM):  # of a kind that cannot be; another's
            raise OSError(e, f"ioctl(UFFDIO_REGISTER): {os.strerror(e)}")
    return out


class Writes:
    """The tracked ranges of one process.  Takes over ``fd``, an enabled userfaultfd with which ``ranges`` are registered."""

    def __init__(self, pid: int, fd: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Raises ``OSError``."""
        self.fd = fd
        self.ranges = ranges
        self._pagemap = -1
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def written(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """What was written since the last call (at the first: all that is there), protecting it again in the same moment.

        Returns ``(data, zero)``: pages that hold data, and those that were written but read as the zero page now.
        """
        data: list[tuple[int, int]] = []
        zero: list[tuple[int, int]] = []
        for start, end in self.ranges:
            found = pagemap.scan(
                self._pagemap, start, end, flags=pagemap.PM_SCAN_WP_MATCHING, mask=_TRACKED | _WRITTEN, anyof=_THERE, returned=_ZERO
            )
            for a, b, categories in found:
                (zero if categories & _ZERO else data).append((a, b))
        return data, zero

    def unwritten(self) -> list[tuple[int, int]]:
        """The pages that hold data and were not written since they were protected; nothing is changed."""
        out: list[tuple[int, int]] = []
        for start, end in self.ranges:
            found = pagemap.scan(
                self._pagemap, start, end, inverted=_WRITTEN | _ZERO, mask=_TRACKED | _WRITTEN | _ZERO, anyof=_THERE, returned=0
            )
            out += ((a, b) for a, b, _ in found)
        return join(out)

    def still(self, start: int, end: int) -> list[tuple[int, int]]:
        """The pages of ``[start, end)`` that are there and were not written since they were protected, zero pages too."""
        found = pagemap.scan(self._pagemap, start, end, inverted=_WRITTEN, mask=_TRACKED | _WRITTEN, anyof=_THERE, returned=0)
        return [(a, b) for a, b, _ in found]

    def close(self) -> None:
        """Stop tracking: the kernel clears its bits, 20-39 ms/GiB, in which the process runs on.  Idempotent."""
        for fd in (self._pagemap, self.fd):
            if fd >= 0:
                os.close(fd)
        self._pagemap = self.fd = -1
