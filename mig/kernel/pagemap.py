"""The page map of a process: which pages of a range are there.  By PAGEMAP_SCAN (Linux 6.7), else by reading the file."""

from __future__ import annotations

import array
import ctypes
import errno
import os
from collections.abc import Iterator

PAGE = 4096
PAGEMAP_SCAN = 0xC0606610

PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6
PAGE_IS_SOFT_DIRTY = 1 << 7

PM_SCAN_WP_MATCHING = 1
PM_SCAN_CHECK_WPASYNC = 2

_IN_RAM, _IN_SWAP = 1 << 63, 1 << 62
_REGIONS = 8192
_ENTRIES = 1 << 16  # of the file, read at a time


class _Scan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
            *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
        )
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def scan(
    fd: int, start: int, end: int, *, flags: int = 0, inverted: int = 0, mask: int = 0, anyof: int = 0, returned: int = 0
) -> Iterator[tuple[int, int, int]]:
    """Regions ``(start, end, categories)`` of ``/proc/PID/pagemap`` (open as ``fd``) that match, in order.

    Raises ``OSError``: ENOTTY where the kernel has no PAGEMAP_SCAN.
    """
    regions = min(_REGIONS, max(1, (end - start) // PAGE))
    vec = (ctypes.c_uint64 * (3 * regions))()
    while start < end:
        a = _Scan(ctypes.sizeof(_Scan), flags, start, end, 0, ctypes.addressof(vec), regions, 0, inverted, mask, anyof, returned)
        n = _libc.ioctl(fd, PAGEMAP_SCAN, ctypes.byref(a))
        if n < 0:
            e = ctypes.get_errno()
            raise OSError(e, f"PAGEMAP_SCAN: {os.strerror(e)}")
        found = vec[: 3 * n]
        yield from zip(found[0::3], found[1::3], found[2::3], strict=True)
        start = int(a.walk_end)


def scans() -> bool:
    """Whether this kernel has PAGEMAP_SCAN."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        list(scan(fd, 0, PAGE, anyof=PAGE_IS_PRESENT, returned=PAGE_IS_PRESENT))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def populated(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges that have an entry: in memory (the zero page too) or in swap."""
    here = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    return _ranges(fd, start, end, inverted=0, mask=0, anyof=here)


def contents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of private anonymous memory that hold data: in memory or in swap, but not the zero page."""
    here = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
    return _ranges(fd, start, end, inverted=PAGE_IS_PFNZERO, mask=PAGE_IS_PFNZERO, anyof=here)


def _ranges(fd: int, start: int, end: int, *, inverted: int, mask: int, anyof: int) -> Iterator[tuple[int, int]]:
    try:
        for a, b, _ in scan(fd, start, end, inverted=inverted, mask=mask, anyof=anyof, returned=anyof):
            yield a, b
    except OSError as e:
        if e.errno != errno.ENOTTY:
            raise
        yield from _read(fd, start, end)


def _read(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The file tells present and swapped; the zero page counts as data there."""
    begin = -1
    for at in range(start, end, _ENTRIES * PAGE):
        n = min(_ENTRIES, (end - at) // PAGE)
        entries = array.array("Q", os.pread(fd, n * 8, at // PAGE * 8))
        for i, e in enumerate(entries):
            if e & (_IN_RAM | _IN_SWAP):
                if begin < 0:
                    begin = at + i * PAGE
            elif begin >= 0:
                yield begin, at + i * PAGE
                begin = -1
    if begin >= 0:
        yield begin, end
