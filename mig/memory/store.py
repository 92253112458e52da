"""The page store at the destination: pages that came before the freeze, until it is known whether they are current.

For each process a sparse memfd, in which a page lies at its own address, and the packed chunks (:mod:`mig.memory.packed`), each as it
came.  Only one process writes and reads them: the pager.  Its guardians have them open too, so that another pager finds them where one has
died.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mig.kernel import libc
from mig.memory.frames import CHUNK, Codec, Range
from mig.memory.packed import Chunks, punch
from mig.memory.ranges import Missing, subtract

_PAGES, _PACKED, _INDEX = "pages", "packed", "index"


def _create(kind: str, index: int) -> int:
    return os.memfd_create(f"mig-{kind}-{index}", os.MFD_CLOEXEC)


def _files_of(pid: int) -> dict[tuple[str, int], int]:
    """Descriptors of the files of a store that process ``pid`` has open, by kind and index.  Raises ``OSError`` when it is gone."""
    out = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = str(fd.readlink()).removeprefix("/memfd:").split()[0].split("-")  # "mig-pages-0 (deleted)"
            if len(name) == 3 and name[0] == "mig" and name[1] in (_PAGES, _PACKED, _INDEX):
                out[name[1], int(name[2])] = int(fd.name)
    return out


class PageStore:
    """Pages by (index of the process, address)."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._chunks: dict[int, Chunks] = {}
        self._current: dict[int, Missing] = {}
        self.bytes = 0
        """Bytes that were put in, each time counted."""

    def put(self, index: int, addr: int, contents: memoryview) -> None:
        """Keep some pages; later ones replace earlier ones."""
        if (chunks := self._chunks.get(index)) is not None:
            chunks.drop(addr, addr + len(contents))
        fd = self._files.get(index)
        if fd is None:
            fd = self._files[index] = _create(_PAGES, index)
        self.bytes += len(contents)
        while contents:
            n = os.pwrite(fd, contents, addr)
            contents, addr = contents[n:], addr + n

    def put_packed(self, index: int, addr: int, length: int, codec: Codec, payload: memoryview) -> None:
        """As :meth:`put`, packed: they are unpacked when they are read."""
        chunks = self._chunks.get(index)
        if chunks is None:
            chunks = self._chunks[index] = Chunks(_create(_PACKED, index), _create(_INDEX, index))
        self.bytes += length
        chunks.add(addr, length, codec, payload)

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

    def around(self, index: int, addr: int) -> list[tuple[int, int]]:
        """Which pages that are here and current it pays to read with the one at ``addr``."""
        chunks, known = self._chunks.get(index), self._current.get(index)
        start = addr // CHUNK * CHUNK
        near = (chunks and chunks.around(addr)) or (start, start + CHUNK)
        return [(p.start, p.end) for p in known.within(*near)] if known is not None else []

    def read(self, index: int, addr: int, into: memoryview) -> None:
        """Contents of current pages.  Raises :class:`mig.memory.packing.PackingError`."""
        if (chunks := self._chunks.get(index)) is None:
            self._read_file(index, addr, into)
            return
        for run in chunks.runs(addr, addr + len(into)):
            part = into[run.start - addr : run.end - addr]
            if run.chunk is None:
                self._read_file(index, run.start, part)
            else:
                part[:] = chunks.read(run)

    def _read_file(self, index: int, addr: int, into: memoryview) -> None:
        got = os.preadv(self._files[index], [into], addr) if index in self._files else 0
        if got < len(into):  # the file ends where the last page came
            into[got:] = bytes(len(into) - got)

    def forget(self, index: int, addr: int, length: int) -> None:
        """These pages are where they belong: free them here."""
        if (known := self._current.get(index)) is not None:
            known.drop(addr, addr + length)
        if (chunks := self._chunks.get(index)) is not None:
            chunks.drop(addr, addr + length)
        if (fd := self._files.get(index)) is not None:
            punch(fd, addr, addr + length)

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
        for index, chunks in self._chunks.items():
            chunks.seal(self._current.get(index, Missing()))
        for index, fd in self._files.items():
            packed = self._chunks[index].held() if index in self._chunks else ()
            at = 0
            for start, end in [*subtract(self.current(index), packed), (os.fstat(fd).st_size, 0)]:
                punch(fd, at, start)
                at = end

    def adopt(self, pid: int) -> None:
        """Take over the files of a store that died, which held nothing but what was current: those that process ``pid`` has open.
        Raises ``OSError``."""
        files = {key: libc.pidfd_getfd(pid, number) for key, number in _files_of(pid).items()}
        for (kind, index), fd in files.items():
            if kind == _PAGES:
                self._adopt_pages(index, fd)
            elif kind == _PACKED:
                chunks = self._chunks[index] = Chunks(fd, files[_INDEX, index])
                for start, end in chunks.held():
                    self.mark(index, start, end)

    def _adopt_pages(self, index: int, fd: int) -> None:
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
        for chunks in self._chunks.values():
            chunks.close()
        self._files.clear()
        self._chunks.clear()
        self._current.clear()
