"""What a pager has learnt of a guest, where it outlives the pager: another one goes on from it, exactly.

A memfd that is mapped, and that the guardian holds as well.  The kernel copies messages from a userfaultfd straight into it (``readv``), so
there is no moment at which a message has been taken from the kernel and is not here.  What has *arrived* is not noted: pages that are
placed a second time are refused by the kernel.

Layout: ``u64`` bytes used, then records ``u32 kind or descriptor, u32 count`` followed, for messages, by that many ``struct uffd_msg``.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mig.kernel import uffd

SIZE = 64 << 20
"""Bytes: room for two million unmaps.  A guest that makes more while its memory arrives has a pager that cannot be replaced."""
BATCH = 64
_HEAD, _USED = struct.Struct("<iI"), struct.Struct("<Q")
_READING = 0xFFFFFFFF
_OPENED, _CLOSED = 0xFFFFFFFE, 0xFFFFFFFD  # in place of a count


class Opened(NamedTuple):
    """Descriptor ``fd`` is that of the process with index ``process``."""

    fd: int
    process: int


class Closed(NamedTuple):
    """Descriptor ``fd`` is closed: its number may come again."""

    fd: int


class Told(NamedTuple):
    """What the kernel said by ``fd``."""

    fd: int
    event: uffd.Event


Note = Opened | Closed | Told


class EventLog:
    """One guest's."""

    def __init__(self, fd: int = -1) -> None:
        """A new one, or the one in the memfd ``fd`` (which is then ours)."""
        self.fd = fd if fd >= 0 else os.memfd_create("mig-events", os.MFD_CLOEXEC)
        if fd < 0:
            os.ftruncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)
        self._view = memoryview(self._map)
        if fd < 0:
            self._set_used(_USED.size)

    @property
    def used(self) -> int:
        """Bytes used."""
        return int(_USED.unpack_from(self._view)[0])

    def _set_used(self, n: int) -> None:
        _USED.pack_into(self._view, 0, n)

    @property
    def full(self) -> bool:
        """No more can be noted, so nobody can go on from here."""
        return self.used + _HEAD.size + BATCH * uffd.MESSAGE > SIZE - uffd.MESSAGE

    def opened(self, fd: int, index: int) -> None:
        """Note a new descriptor."""
        self._note(fd, _OPENED, index)

    def closed(self, fd: int) -> None:
        """Note that a descriptor is about to be closed."""
        self._note(fd, _CLOSED, 0)

    def told(self, fd: int, event: uffd.Event) -> None:
        """Note an event that another log had."""
        if self.full:
            return
        at = self.used
        _HEAD.pack_into(self._view, at, fd, 1)
        self._view[at + _HEAD.size : at + _HEAD.size + uffd.MESSAGE] = uffd.message(event)
        self._set_used(at + _HEAD.size + uffd.MESSAGE)

    def rewrite(self, mark: int, fd: int, events: list[uffd.Event]) -> None:
        """What was read since ``used`` was ``mark`` happened in this order: a pager that goes on from here cannot find out any more.

        One that dies in the microseconds of this loses the batch; it is done about once in a hundred thousand calls of a guest.
        """
        if self.full:
            return
        self._set_used(mark)
        for e in events:
            self.told(fd, e)

    def _note(self, fd: int, what: int, index: int) -> None:
        if self.full:
            return
        at = self.used
        _HEAD.pack_into(self._view, at, fd, what)
        _USED.pack_into(self._view, at + _HEAD.size, index & 0xFFFFFFFF)
        self._set_used(at + _HEAD.size + _USED.size)

    def read(self, fd: int) -> list[uffd.Event]:
        """What there is now of a userfaultfd, noted.  Raises ``OSError``."""
        if self.full:
            return uffd.read(fd, BATCH)
        at = self.used
        begin = at + _HEAD.size
        _HEAD.pack_into(self._view, at, fd, _READING)
        try:
            n = os.readv(fd, [self._view[begin : begin + BATCH * uffd.MESSAGE]])
        except BlockingIOError:
            n = 0
        events = uffd.parse(self._view[begin : begin + n])
        if all(e.kind == uffd.EVENT_PAGEFAULT for e in events):  # whoever waits faults again when it is woken
            self._view[at : begin + n] = bytes(begin + n - at)
        else:
            _HEAD.pack_into(self._view, at, fd, n // uffd.MESSAGE)
            self._set_used(begin + n)
        return events

    def replay(self) -> Iterator[Note]:
        """Everything that was noted, in order, with what was just being read."""
        at, end = _USED.size, self.used
        while at < end:
            fd, count = _HEAD.unpack_from(self._view, at)
            at += _HEAD.size
            if count in (_OPENED, _CLOSED):
                index = _USED.unpack_from(self._view, at)[0]
                at += _USED.size
                yield Closed(fd) if count == _CLOSED else Opened(fd, index - (1 << 32) if index >> 31 else index)
                continue
            for e in uffd.parse(self._view[at : at + count * uffd.MESSAGE]):
                yield Told(fd, e)
            at += count * uffd.MESSAGE
        fd, count = _HEAD.unpack_from(self._view, at)
        if count == _READING:
            at += _HEAD.size
            n = 0
            while n < BATCH and self._view[at + n * uffd.MESSAGE]:
                n += 1
            for e in uffd.parse(self._view[at : at + n * uffd.MESSAGE]):
                yield Told(fd, e)
