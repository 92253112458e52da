"""What goes over one push connection: chunks of a frozen tree's memory, each page sent, or only told of where that is enough."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mig.memory import frames
from mig.memory.fingerprints import Fingerprints, Part
from mig.memory.frames import CHUNK, PAGE, Kind, Range
from mig.memory.ranges import intersect
from mig.memory.sender import Sender

SPARSE = 2
"""A chunk that lies within so many times its size is read as one: pages in between are compared as well, which costs less than a read for
each piece."""
_NOTES = 16 << 10
"""Bytes of frames without contents that are sent together."""


class MemoryLost(Exception):
    """The process whose memory we serve is gone."""


class Memory:
    """One process's: descriptors of its mem and pagemap, the hidden ranges, and pages as they were before its exit changed them."""

    def __init__(self, mem: int, maps: int, ranges: list[tuple[int, int]], saved: dict[int, bytes]) -> None:
        self.mem, self.maps, self.ranges, self.saved = mem, maps, ranges, saved

    def has(self, start: int, end: int) -> bool:
        """Whether ``[start, end)`` lies in one of the hidden ranges."""
        return any(a <= start and end <= b for a, b in self.ranges)

    def read(self, addr: int, length: int) -> bytes:
        """Raises :class:`MemoryLost`."""
        try:
            b = os.pread(self.mem, length, addr)
        except OSError as e:
            raise MemoryLost(f"{length} bytes at {addr:#x} cannot be read: {e}") from e
        if len(b) != length:
            raise MemoryLost(f"its memory is gone ({len(b)} of {length} bytes at {addr:#x})")
        for at, page in self.saved.items():
            if addr <= at < addr + length:
                b = b[: at - addr] + page + b[at - addr + PAGE :]
        return b

    def close(self) -> None:
        """Let go."""
        os.close(self.mem)
        os.close(self.maps)


class Pusher:
    """``known``: what was sent to the destination's store on this connection.  ``bytes``, ``zeros``: sent, and told to hold nothing."""

    def __init__(self, sender: Sender, known: Fingerprints, memories: Mapping[int, Memory]) -> None:
        self.sender, self.known, self.memories = sender, known, memories
        self.bytes = self.zeros = 0
        self._notes = bytearray()

    def note(self, kind: Kind, index: int = 0, start: int = 0, end: int = 0) -> None:
        """Tell of pages without their contents, at the next :meth:`flush` or soon.  Raises ``OSError``."""
        if kind is Kind.ZERO:
            self.zeros += end - start
        self._notes += frames.note(kind, index, start, end)
        if len(self._notes) >= _NOTES:
            self.flush()

    def flush(self) -> None:
        """Send what was noted.  Raises ``OSError``."""
        if self._notes:
            self.sender.sock.sendall(self._notes)
            self._notes.clear()

    def send(self, chunk: Sequence[Range]) -> bool:
        """Pages of one process, in order; whether any contents had to be sent.  Raises ``OSError``, :class:`MemoryLost`."""
        index, pieces = chunk[0].process, [(r.start, r.end) for r in chunk]
        memory = self.memories[index]
        start, end = pieces[0][0], pieces[-1][1]
        together = end - start <= SPARSE * sum(b - a for a, b in pieces) and memory.has(start, end)
        sent = False
        for a, b in ((start, end),) if together else pieces:
            contents = memory.read(a, b - a)
            found: dict[Part, list[tuple[int, int]]] = {part: [] for part in Part}
            for part, x, y in self.known.split(index, a, contents):
                found[part].append((a + x, a + y))
            for x, y in found[Part.SAME]:  # what lies between the pieces is told once more
                self.note(Kind.STORED, index, x, y)
            for x, y in intersect(found[Part.ZERO], pieces):
                self.note(Kind.ZERO, index, x, y)
            self.flush()
            for x, y in intersect(found[Part.SEND], pieces):
                for at in range(x, y, CHUNK):
                    self.bytes += self.sender.send(Kind.DATA, index, at, memoryview(contents)[at - a : min(at + CHUNK, y) - a])
                    sent = True
        return sent
