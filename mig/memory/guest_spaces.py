"""What a pager knows of its guest's address spaces: their userfaultfds, and where in each of them memory is missing.

It follows what the guest does to its memory (unmap, discard, mremap, fork): events are read into the log, put into the order in which they
happened, and counted at once; faults wait until the pager serves them.  A pager that takes over learns all of it from the log of the one
that died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable

from mig.kernel import libc, uffd
from mig.memory import order
from mig.memory.eventlog import Closed, EventLog, Note, Opened, Told
from mig.memory.frames import PAGE
from mig.memory.ranges import Spaces

log = logging.getLogger(__name__)

_LOWEST, _HIGHEST = 1 << 16, (1 << 47) - PAGE
_PATIENCE = 10.0
"""Seconds to wait for the calls under way in a guest to have told of themselves: of one's own time they take microseconds, but a guest may
have to wait for its turn on a busy machine, and a fork copies the tables of all of its memory."""
_RETRY = 0.0003
"""Seconds to wait when the kernel says EAGAIN and has no event: the thread whose call is under way has to run first."""


class GuestSpaces:
    """One guest's.  ``poll`` watches the userfaultfds; ``forked`` is called when there is another one.

    ``owner``: the index of a process in the layout, by userfaultfd (a process and its later children have one index); ``spaces``: what is
    missing, by index; ``ranges``: what was missing at first; ``faults``: userfaultfd and address, in the order in which they came.
    """

    def __init__(self, log: EventLog, poll: select.epoll, forked: Callable[[], None]) -> None:
        self.log, self.poll, self.forked = log, poll, forked
        self.ranges: dict[int, list[tuple[int, int]]] = {}
        self.spaces: dict[int, Spaces] = {}
        self.owner: dict[int, int] = {}
        self.faults: deque[tuple[int, int]] = deque()
        self._index_of: dict[int, int] = {}  # by pid in the images
        self._closed_before = -1

    # -- which there are -------------------------------------------------------------------------------------------------------

    def layout(self, processes: list[tuple[int, int, list[tuple[int, int]]]]) -> None:
        """What the images do not hold: index, pid in the images, ranges.  Before the restore begins."""
        for index, pid, ranges in processes:
            self._index_of[pid] = index
            self.ranges[index] = ranges
            self.spaces[index] = Spaces()

    def adopt(self, fd: int, pid: int) -> None:
        """The userfaultfd, now ours, of the process that has this number in the images."""
        index = self._index_of.get(pid, -1)
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
        self.log.opened(fd, index)
        spaces = self.spaces.setdefault(index, Spaces())
        spaces.open(fd, self.ranges.get(index, ()))
        self.owner[fd] = index
        self.poll.register(fd, select.EPOLLIN)

    def close(self, fd: int) -> None:
        """An address space has ended, or nothing is missing in it any more; idempotent."""
        index = self.owner.pop(fd, None)
        if index is not None:
            self.spaces[index].close(fd)
            self.log.closed(fd)
            with contextlib.suppress(FileNotFoundError):
                self.poll.unregister(fd)
            os.close(fd)

    # -- from a pager that died ------------------------------------------------------------------------------------------------

    def take_over(self, guardian: int, old: EventLog) -> None:
        """Go on where a pager died: its descriptors are the guardian's, and ``old`` tells what it had learnt."""
        notes = list(old.replay())
        ours: dict[int, int] = {}  # by number there
        for at, note in enumerate(notes):
            match note:
                case Opened(fd, index):
                    ours[fd] = self._take_over_one(guardian, fd, index, notes[at:])
                    self.spaces.setdefault(index, Spaces()).open(ours[fd], self.ranges.get(index, ()))
                case Closed(fd):
                    space = ours.pop(fd)
                    self.spaces[self.owner.pop(space)].close(space)
                case Told(fd, event):
                    if event.kind == uffd.EVENT_FORK:
                        child = self._take_over_one(guardian, event.a, self.owner[ours[fd]], notes[at:], noted=False)
                        ours[event.a] = child
                        event = uffd.Event(event.kind, child)
                    if ours[fd] >= 0 and (event.kind != uffd.EVENT_FORK or event.a >= 0):
                        self.log.told(ours[fd], event)
                    self._heard(ours[fd], event)
        for fd in ours.values():
            self.poll.register(fd, select.EPOLLIN)
            uffd.wake(fd, _LOWEST, _HIGHEST - _LOWEST)  # who waits for the dead pager's answer asks again

    def _take_over_one(self, guardian: int, fd: int, index: int, later: list[Note], *, noted: bool = True) -> int:
        """Our duplicate of a descriptor of the guardian's; a number below 0 for one that was closed in the meantime."""
        if any(isinstance(n, Closed) and n.fd == fd for n in later):
            self._closed_before -= 1
            space = self._closed_before
        else:
            space = libc.pidfd_getfd(guardian, fd)
            if noted:
                self.log.opened(space, index)
        self.owner[space] = index
        return space

    # -- what happens in them --------------------------------------------------------------------------------------------------

    def drain(self, fd: int) -> bool:
        """Read what the kernel tells of one address space, if anything; events count at once, faults wait until all of them are read."""
        mark = self.log.used
        try:
            events = self.log.read(fd)
        except OSError as e:
            log.info("userfaultfd %d: %s", fd, e)
            return False
        if any(e.kind != uffd.EVENT_PAGEFAULT for e in events):
            self._heard_all(fd, events, mark)
        else:
            for event in events:
                self._heard(fd, event)
        return bool(events)

    def let_change(self, fd: int) -> None:
        """The kernel places nothing while the address space is being changed: read what it tells of that, or wait a moment."""
        if not self.drain(fd):
            time.sleep(_RETRY)

    def _heard_all(self, fd: int, events: list[uffd.Event], mark: int) -> None:
        """Events and faults: when no call is under way any more they are complete, and put into the order in which they happened."""
        index, began = self.owner[fd], time.monotonic()
        while True:
            while uffd.changing(fd) and time.monotonic() - began < _PATIENCE:  # no page can be placed anyway
                try:
                    more = self.log.read(fd)
                except OSError:
                    break
                events += more
                if not more:
                    time.sleep(_RETRY)
            told = happened = [e for e in events if e.kind != uffd.EVENT_PAGEFAULT]
            if time.monotonic() - began >= _PATIENCE:
                log.warning("a call of the guest has been under way for %.0f s: what it did may be taken in the wrong order", _PATIENCE)
                break  # what is registered cannot be asked
            happened = order.settle(self.spaces[index].missing[fd], fd, told, uffd.registered)
            if not uffd.changing(fd):
                break  # nothing has changed for as long as we looked
        for event in told:
            if event.kind == uffd.EVENT_FORK:
                self.owner[event.a] = index
                self.poll.register(event.a, select.EPOLLIN)
                self.forked()
        if happened != told:
            self.log.rewrite(mark, fd, happened)
        for event in [*happened, *(e for e in events if e.kind == uffd.EVENT_PAGEFAULT)]:
            self._heard(fd, event)

    def _heard(self, fd: int, event: uffd.Event) -> None:
        spaces = self.spaces[self.owner[fd]]
        match event.kind:
            case uffd.EVENT_PAGEFAULT:
                self.faults.append((fd, event.a))
            case uffd.EVENT_REMOVE | uffd.EVENT_UNMAP:
                spaces.remove(fd, event.a, event.b)
            case uffd.EVENT_REMAP:
                spaces.remap(fd, event.a, event.b, event.n)
            case uffd.EVENT_FORK:
                spaces.fork(fd, event.a)
