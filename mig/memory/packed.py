"""Packed chunks of the destination's page store: contents stay as they came until their turn, which saves a page of memory and two copies
for each page that came, where memory packs well.

One process's: a memfd with the chunks one behind the other, and for every page which chunk has it.  A later chunk, or a page that is kept
elsewhere, takes pages away from an earlier one; a chunk without pages is freed.  :meth:`Chunks.seal` writes into a second memfd what the
first holds, so that another process finds it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mig.memory.frames import MAX_PAYLOAD, PAGE, Codec
from mig.memory.packing import Unpacker
from mig.memory.ranges import Missing

_BLOCK = 256 << 10  # addresses that one list of chunks is for: as long as most chunks are
_KEPT = 4  # chunks that stay unpacked: who reads on needs the last one again
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_ENTRY = struct.Struct(f"<QQIIB3x{MAX_PAYLOAD // PAGE // 8}s")  # address, offset, size, length, codec, pages
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(fd: int, start: int, end: int) -> None:
    """Free the whole pages of a file in ``[start, end)``; it keeps its size."""
    start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    if start < end:
        _libc.fallocate64(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, start, end - start)


def bits(first: int, last: int) -> int:
    """A set of pages: ``first`` to ``last - 1``."""
    return (1 << last) - (1 << first)


@dataclass(eq=False)
class Chunk:
    """``length`` bytes of memory at ``addr``, packed into ``size`` bytes at ``offset`` of the file.  ``pages``: those of which it has the
    newest contents, the lowest bit for the first.  ``entry``: where the index has it, once it is sealed."""

    addr: int
    length: int
    offset: int
    size: int
    codec: Codec
    pages: int
    entry: int = -1

    def within(self, start: int, end: int) -> int:
        """Its pages in ``[start, end)``, those that it has lost too."""
        return bits((max(start, self.addr) - self.addr) // PAGE, (min(end, self.addr + self.length) - self.addr) // PAGE)


class Run(NamedTuple):
    """Pages ``[start, end)`` of which ``chunk`` has the contents; None: they are kept elsewhere."""

    start: int
    end: int
    chunk: Chunk | None


class Chunks:
    """The packed chunks of one process."""

    def __init__(self, file: int, index: int) -> None:
        """``file``, ``index``: memfds, which are ours from now on; chunks that are in a sealed index are found again."""
        self.file, self.index = file, index
        self._end = os.fstat(file).st_size
        self._blocks: dict[int, list[Chunk]] = {}
        self._freed = Missing()  # of the file
        self._unpacked: dict[Chunk, bytes | bytearray | memoryview] = {}
        self._unpacker = Unpacker()
        entries = os.pread(index, os.fstat(index).st_size, 0)
        for n, (addr, offset, size, length, codec, pages) in enumerate(_ENTRY.iter_unpack(entries)):
            if number := int.from_bytes(pages, "little"):
                self._list(Chunk(addr, length, offset, size, Codec(codec), number, n))

    def add(self, addr: int, length: int, codec: Codec, payload: memoryview) -> None:
        """Keep a chunk as it came: ``length`` bytes of memory, at most :data:`MAX_PAYLOAD`."""
        self.drop(addr, addr + length)
        chunk = Chunk(addr, length, self._end, len(payload), codec, bits(0, length // PAGE))
        while payload:
            n = os.pwrite(self.file, payload, self._end)
            payload, self._end = payload[n:], self._end + n
        self._list(chunk)

    def drop(self, start: int, end: int) -> None:
        """These pages are where they belong, or something newer is kept elsewhere."""
        for chunk in self._touched(start, end):
            chunk.pages &= ~chunk.within(start, end)
            if not chunk.pages:
                self._free(chunk)

    def runs(self, start: int, end: int) -> Iterator[Run]:
        """Who has the pages of ``[start, end)``, in order."""
        chunks = self._touched(start, end)
        at = start
        while at < end:
            owner = self._owner(chunks, at)
            stop = at + PAGE
            while stop < end and self._owner(chunks, stop) is owner:
                stop += PAGE
            yield Run(at, stop, owner)
            at = stop

    def around(self, addr: int) -> tuple[int, int] | None:
        """The memory of the chunk that has the page at ``addr``; None: none has it."""
        chunk = self._owner(self._touched(addr, addr + PAGE), addr)
        return (chunk.addr, chunk.addr + chunk.length) if chunk else None

    def read(self, run: Run) -> memoryview:
        """The contents of a run that a chunk has.  Raises :class:`mig.memory.packing.PackingError`."""
        chunk = run.chunk
        assert chunk is not None
        whole = self._unpacked.get(chunk)
        if whole is None:
            packed = os.pread(self.file, chunk.size, chunk.offset)
            whole = self._unpacker.unpack(packed, chunk.codec, chunk.length)
            while len(self._unpacked) >= _KEPT:
                del self._unpacked[next(iter(self._unpacked))]
            self._unpacked[chunk] = whole
        return memoryview(whole)[run.start - chunk.addr : run.end - chunk.addr]

    def seal(self, current: Missing) -> None:
        """Only these pages count from now on, and the index has what there is; nothing is added any more."""
        for chunk in self._all():
            kept = 0
            for p in current.within(chunk.addr, chunk.addr + chunk.length):
                kept |= chunk.within(p.start, p.end)
            chunk.pages &= kept
            if not chunk.pages:
                self._free(chunk)
        entries = bytearray()
        for n, c in enumerate(self._all()):
            entries += _ENTRY.pack(c.addr, c.offset, c.size, c.length, c.codec, c.pages.to_bytes(MAX_PAYLOAD // PAGE // 8, "little"))
            c.entry = n
        os.pwrite(self.index, entries, 0)

    def held(self) -> Iterator[tuple[int, int]]:
        """The pages of all chunks, as ranges, in no order."""
        for chunk in self._all():
            first, rest = 0, chunk.pages
            while rest:
                skip = (rest & -rest).bit_length() - 1
                first, rest = first + skip, rest >> skip
                n = (~rest & (rest + 1)).bit_length() - 1
                yield chunk.addr + first * PAGE, chunk.addr + (first + n) * PAGE
                first, rest = first + n, rest >> n

    def close(self) -> None:
        """Free everything."""
        os.close(self.file)
        os.close(self.index)

    def _list(self, chunk: Chunk) -> None:
        for number in range(chunk.addr // _BLOCK, (chunk.addr + chunk.length - 1) // _BLOCK + 1):
            self._blocks.setdefault(number, []).append(chunk)

    def _touched(self, start: int, end: int) -> list[Chunk]:
        """Chunks that may have pages of ``[start, end)``."""
        numbers = range(start // _BLOCK, (end - 1) // _BLOCK + 1)
        found = (c for number in numbers for c in self._blocks.get(number, ()) if c.addr < end and start < c.addr + c.length)
        return list(dict.fromkeys(found))

    @staticmethod
    def _owner(chunks: Sequence[Chunk], addr: int) -> Chunk | None:
        for c in chunks:
            if c.addr <= addr < c.addr + c.length and c.pages >> ((addr - c.addr) // PAGE) & 1:
                return c
        return None

    def _all(self) -> list[Chunk]:
        return list(dict.fromkeys(c for chunks in self._blocks.values() for c in chunks))

    def _free(self, chunk: Chunk) -> None:
        for number in range(chunk.addr // _BLOCK, (chunk.addr + chunk.length - 1) // _BLOCK + 1):
            left = self._blocks[number]
            left.remove(chunk)
            if not left:
                del self._blocks[number]
        self._unpacked.pop(chunk, None)
        if chunk.entry >= 0:  # before its contents go
            os.pwrite(self.index, bytes(_ENTRY.size), chunk.entry * _ENTRY.size)
        # a page of the file may be that of two chunks: it goes with the second
        start, end = chunk.offset, chunk.offset + chunk.size
        self._freed.add(start, end)
        low, high = start // PAGE * PAGE, -(-end // PAGE) * PAGE
        before, behind = self._freed.within(low, start), self._freed.within(end, high)
        punch(
            self.file,
            low if before and before[-1].end == start and before[-1].start == low else start,
            high if behind and behind[0].start == end and behind[0].end == high else end,
        )
