"""The page store at the destination: pages that came before the freeze, until it is known whether they are current.

A sparse memfd for each process, in which a page lies at its own address.  Only one process writes and reads it: the pager.  Its guardians
have it open too, so that another pager finds it where one has died.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from mig.memory.frames import Range
from mig.memory.ranges import Missing

NAME = "mig-pages-"
"""Before the index, in the name of a file."""
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def files_of(pid: int) -> list[tuple[int, int]]:
    """(index, descriptor) of each file of a store that process ``pid`` has open.  Raises ``OSError`` when it is gone."""
    out = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        if target.startswith(f"/memfd:{NAME}"):
            out.append((int(target.removeprefix(f"/memfd:{NAME}").split()[0]), int(fd)))
    return out


class PageStore:
    """Pages by (index of the process, address)."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._current: dict[int, Missing] = {}
        self.bytes = 0
        """Bytes that were put in, each time counted."""

    def put(self, index: int, addr: int, contents: memoryview) -> None:
        """Keep some pages; later ones replace earlier ones."""
        fd = self._files.get(index)
        if fd is None:
            fd = self._files[index] = os.memfd_create(f"{NAME}{index}", os.MFD_CLOEXEC)
        self.bytes += len(contents)
        while contents:
            n = os.pwrite(fd, contents, addr)
            contents, addr = contents[n:], addr + n

    def mark(self, index: int, start: int, end: int) -> None:
        """The pages ``[start, end)`` are current: they may be used."""
        self._current.setdefault(index, Missing()).add(start, end)

    def find(self, index: int, addr: int, limit: int = 0) -> int:
        """How many bytes from ``addr`` on are here and current, at most ``limit``; 0 for none."""
        known = self._current.get(index)
        piece = known.find(addr, limit) if known is not None else None
        return piece.end - piece.start if piece is not None else 0

    def current(self, index: int) -> list[tuple[int, int]]:
        """All that is here and current of one process."""
        return [(p.start, p.end) for p in self._current.get(index, ())]

    def read(self, index: int, addr: int, into: memoryview) -> None:
        """Contents of current pages."""
        got = os.preadv(self._files[index], [into], addr)
        if got < len(into):  # the file ends where the last page came
            into[got:] = bytes(len(into) - got)

    def forget(self, index: int, addr: int, length: int) -> None:
        """These pages are where they belong: free them here."""
        if (known := self._current.get(index)) is not None:
            known.drop(addr, addr + length)
        if (fd := self._files.get(index)) is not None:
            _libc.fallocate64(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, addr, length)

    @property
    def held(self) -> int:
        """Bytes that are here and current."""
        return sum(known.bytes for known in self._current.values())

    def chunks(self, size: int) -> Iterator[Range]:
        """Current pages, ``size`` bytes at the most, the next one looked up anew each time; to be forgotten by the caller."""
        for index, known in self._current.items():
            while (first := next(iter(known), None)) is not None:
                yield Range(index, first.start, min(first.end, first.start + size))

    def keep_current(self) -> None:
        """Free what is not current: from now on whatever the files hold is, so that they can be :meth:`adopt`ed."""
        for index, fd in self._files.items():
            at = 0
            for start, end in [*self.current(index), (os.fstat(fd).st_size, 0)]:
                if start > at:
                    _libc.fallocate64(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, at, start - at)
                at = end

    def adopt(self, index: int, fd: int) -> None:
        """Take over the file of a store that died, which held nothing but what was current."""
        self._files[index] = fd
        at = 0
        while True:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as e:
                if e.errno != errno.ENXIO:
                    raise
                return  # nothing behind it
            end = os.lseek(fd, at, os.SEEK_HOLE)
            self.mark(index, at, end)
            at = end

    def close(self) -> None:
        """Free everything."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._current.clear()
