"""The pager: it serves the page faults of a guest whose memory has not all arrived, and places what arrives.

One thread, one loop: the order of a guest's events (:mod:`mig.memory.guest_spaces`) and of the pages placed is then the order in which we
do it, which the rules in :mod:`mig.memory.ranges` rely on.

A page is placed once, and never over anything: ``UFFDIO_COPY`` refuses a page that is there.  A fault at an address that is not missing
is a page that never held anything, or was discarded: it reads as zero.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from mig import wire
from mig.kernel import uffd
from mig.memory import frames
from mig.memory.eventlog import EventLog
from mig.memory.frames import CHUNK, PAGE, RAW_LENGTH, Codec, Kind
from mig.memory.guest_spaces import GuestSpaces
from mig.memory.packing import PackingError
from mig.memory.ranges import join, subtract
from mig.memory.store import PageStore
from mig.memory.stream import Frame, Stream, Unpacked, raw_length

log = logging.getLogger(__name__)

FIN = 0x52535446
"""CRIU's last word on its socket: every process has handed over its userfaultfd."""
FEED = 256 << 10
"""Bytes that are taken from the page store at a time, between two looks for faults."""
FRAMES = 32
"""Frames between two looks for what is urgent: a read may give thousands that are notes of a few bytes."""
MANY = 100_000
"""Ranges that one message names."""


class Pager:
    """One guest's pager.  ``say`` tells the keeper; ``connect`` begins to make the connections to the source again."""

    def __init__(self, listener: socket.socket | None, say: Callable[..., None], reconnect: Callable[[], None], log: EventLog) -> None:
        self.listener, self.say, self.reconnect = listener, say, reconnect
        self.criu: socket.socket | None = None
        self.demand: Stream | None = None
        self.push: Stream | None = None
        self.poll = select.epoll()
        if listener is not None:
            self.poll.register(listener, select.EPOLLIN)
        self.guest = GuestSpaces(log, self.poll, lambda: say("forked"))
        self.asked: dict[tuple[int, int], float] = {}
        self.store = PageStore()
        self.complete = False  # the source has sent everything on this connection
        self.whole = False  # all that was missing is here, in its place or in the store: the source is not needed any more
        self.released = False  # the source knows that it is not needed
        self.pushing = False
        self.over = False
        self.counts = {"faults": 0, "demanded": 0, "zeros": 0, "bytes": 0, "stored": 0}
        self.latencies: list[float] = []
        self._took_over_whole = False
        self._heard_at = time.monotonic()
        self._unpacked = Unpacked()
        self._page = mmap.mmap(-1, FEED)
        self._page_address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    # -- the loop --------------------------------------------------------------------------------------------------------------

    def step(self, fds: list[int]) -> None:
        """Serve what is ready."""
        if self.listener is not None and self.listener.fileno() in fds:
            self.criu, _ = self.listener.accept()
            self.poll.register(self.criu, select.EPOLLIN)
        if self.criu is not None and self.criu.fileno() in fds:
            self._criu_says(self.criu)
        # faults and events first: somebody waits
        for fd in fds:
            if fd in self.guest.owner:
                self.guest.drain(fd)
        self._serve_faults()
        for stream in (self.demand, self.push):
            if stream is not None and stream.sock.fileno() in fds:
                self._receive(stream)
                self._serve_faults()
        if self.complete and not self.asked and not self.whole:
            self._look_whether_whole()
        if self.pushing and (self.push is None or self.push.sock.fileno() not in fds):  # the line comes first
            self._feed()

    @property
    def idle(self) -> bool:
        """Nothing is to be done before a descriptor is ready."""
        return not (self.pushing and any(True for _ in self.store.chunks(PAGE)))

    # -- CRIU ------------------------------------------------------------------------------------------------------------------

    def _criu_says(self, s: socket.socket) -> None:
        word = s.recv(4, socket.MSG_WAITALL)
        if len(word) < 4:
            self.poll.unregister(s)
            s.close()
            self.criu = None
            return
        (pid,) = struct.unpack("<i", word)
        if pid == FIN:
            self.say("restored", processes=len(self.guest.owner))
        elif pid > 0:
            _, fds, _, _ = socket.recv_fds(s, 1, 1)
            self.guest.adopt(fds[0], pid)

    def take_over(self, guardian: int, old: EventLog, *, whole: bool) -> None:
        """Go on where a pager died; ``whole``: its store has what is not in its place yet."""
        self.guest.take_over(guardian, old)
        if whole:
            self.whole = self.complete = self._took_over_whole = True
            self.store.adopt(guardian)

    # -- the guest's faults ----------------------------------------------------------------------------------------------------

    def _serve_faults(self) -> None:
        while self.guest.faults:
            fd, addr = self.guest.faults.popleft()
            if fd in self.guest.owner:
                self.counts["faults"] += 1
                self._fault(fd, addr)

    def _fault(self, fd: int, addr: int) -> None:
        index = self.guest.owner[fd]
        piece = self.guest.spaces[index].find(fd, addr, PAGE)
        if piece is None:
            self._zero(fd, addr)
        elif self.store.find(index, piece.source, PAGE):
            near = self.store.around(index, piece.source)
            self._place_stored(index, piece.source, PAGE)  # somebody waits
            for start, end in subtract(near, [(piece.source, piece.source + PAGE)]):
                for at in range(start, end, FEED):
                    self._place_stored(index, at, min(FEED, end - at))
        elif self._took_over_whole:
            self._zero(fd, addr)  # neither in its place nor in the store: it holds nothing, as the dead one had been told
        elif self.whole:
            self.say("lost", why=f"the page at {addr:#x} is missing though all had arrived")
        elif (index, piece.source) not in self.asked:
            self.asked[index, piece.source] = time.monotonic()
            self._request(index, piece.source)

    def _zero(self, fd: int, addr: int) -> None:
        _, e = uffd.zeropage(fd, addr, PAGE)
        if e == errno.EAGAIN:
            self.guest.let_change(fd)
            self.guest.faults.append((fd, addr))  # what we have read meanwhile may have changed what is there
        elif e == errno.ESRCH:
            self.guest.close(fd)
        elif e:
            uffd.wake(fd, addr, PAGE)  # it is there already, or nothing is mapped any more
        else:
            self.counts["zeros"] += 1

    def _place(self, index: int, source: int, where: int, length: int) -> None:
        """Put pages of the source, which lie at ``where`` in our memory, wherever they are missing."""
        spaces = self.guest.spaces.get(index)
        if spaces is None:
            raise wire.WireError(f"pages of process {index}, which we do not have")
        single = False
        while places := spaces.places(source, source + length):
            p = places[0]
            done, e = uffd.copy(p.space, p.start, where + p.source - source, PAGE if single else p.end - p.start)
            if done:
                spaces.arrived(p.space, p.start, p.start + done)
            at, single = p.start + done, False
            if e == errno.EAGAIN:
                if not done:
                    self.guest.let_change(p.space)
            elif e == errno.ENOENT and (uffd.changing(p.space) or self.guest.drain(p.space)):
                self.guest.let_change(p.space)  # the kernel looks for the area first: it may have been moved just now, and that is not read
            elif e == errno.ENOENT and p.end - p.start > PAGE:
                single = True  # it takes one area at a time, and there may be several
            elif e in (errno.EEXIST, errno.ENOENT):
                spaces.arrived(p.space, at, at + PAGE)
                uffd.wake(p.space, at, PAGE)
            elif e == errno.ESRCH:
                self.guest.close(p.space)
            elif e:
                raise OSError(e, f"UFFDIO_COPY of {p.end - p.start} bytes to {p.start:#x}: {os.strerror(e)}")

    # -- the source ------------------------------------------------------------------------------------------------------------

    def connected(self, demand: socket.socket, push: socket.socket) -> None:
        """Connections to the source, the first ones or new ones; what was asked for on the old ones is asked for again."""
        for s in (demand, push):
            s.setblocking(False)
            self.poll.register(s, select.EPOLLIN)
        self.demand, self.push = Stream(demand), Stream(push)
        self._heard_at = time.monotonic()
        if self.pushing:
            self._tell(push, op="push", missing=self.missing_ranges())
            self.asked = dict.fromkeys((k for k in self.asked if self.guest.spaces[k[0]].places(k[1], k[1] + PAGE)), time.monotonic())
        for index, source in self.asked:
            self._request(index, source)

    def start_push(self, *, again: bool = False) -> None:
        """The guest runs: everything is wanted.  ``again``: by a pager that took over, so the source is told what that is."""
        self.pushing = True
        self._heard_at = time.monotonic()
        if self.push is not None and not self.whole:
            self._tell(self.push.sock, op="push", missing=self.missing_ranges() if again else None)

    def missing_ranges(self) -> list[tuple[int, int, int]]:
        """What has to be sent again to a source that has forgotten; pages in the store are here."""
        out = [(i, a, b) for i, spaces in self.guest.spaces.items() for a, b in subtract(spaces.left(), self.store.current(i))]
        if len(out) > MANY:  # more than a message holds: what comes twice is dropped
            return [(i, a, b) for i, ranges in self.guest.ranges.items() for a, b in ranges]
        return out

    def _tell(self, s: socket.socket, **m: Any) -> None:
        try:
            s.setblocking(True)
            wire.send(s, **m)
            s.setblocking(False)
        except OSError as e:
            self._disconnected(e)

    def _request(self, index: int, source: int) -> None:
        if self.demand is None:
            return
        self.counts["demanded"] += 1
        try:
            self.demand.sock.send(frames.REQUEST.pack(source, index))
        except BlockingIOError:
            self._disconnected(OSError(errno.EAGAIN, "the source takes no requests"))
        except OSError as e:
            self._disconnected(e)

    def _receive(self, stream: Stream) -> None:
        try:
            for n, f in enumerate(stream.frames(), 1):
                self._heard_at = time.monotonic()
                self._frame(f)
                if n % FRAMES == 0 and stream is self.push:
                    self._look_between()
        except (OSError, EOFError) as e:
            if not self.over:
                self._disconnected(e)

    def _look_between(self) -> None:
        """Somebody may wait for a page, or for one that has come on the other connection."""
        for fd in list(self.guest.owner):
            self.guest.drain(fd)
        self._serve_faults()
        if self.demand is not None:
            self._receive(self.demand)

    def _disconnected(self, why: BaseException) -> None:
        """Threads that need pages wait; the connections are made again."""
        if self.demand is None or self.whole:
            return
        log.warning("the connection to the page source broke: %s", why or type(why).__name__)
        for stream in (self.demand, self.push):
            if stream is not None:
                self.poll.unregister(stream.sock)
                stream.close()
        self.demand = self.push = None
        self.complete = False
        self.reconnect()

    def _frame(self, f: Frame) -> None:
        if f.codec is not Codec.RAW and f.kind in (Kind.DATA, Kind.STORE):
            length = raw_length(f)
            if f.kind is Kind.STORE and length >= CHUNK:
                self.store.put_packed(f.process, f.addr, length, f.codec, f.payload[RAW_LENGTH.size :])
                return
            f = self._unpacked.unpack(f, length)
        match f.kind:
            case Kind.DATA:
                self.counts["bytes"] += f.length
                self._place(f.process, f.addr, f.where, f.length)
                if f.length == PAGE and (since := self.asked.pop((f.process, f.addr), None)) is not None:
                    self.latencies.append(time.monotonic() - since)
                else:
                    for at in range(f.addr, f.addr + f.length, PAGE):
                        self.asked.pop((f.process, at), None)
            case Kind.STORE:
                self.store.put(f.process, f.addr, f.payload)
            case Kind.ZERO:
                self._are_zero(f.process, f.addr, f.addr + f.length * PAGE)
            case Kind.STORED:
                self.store.mark(f.process, f.addr, f.addr + f.length * PAGE)
            case Kind.ALL:
                self.complete = True

    def _are_zero(self, index: int, start: int, end: int) -> None:
        """Nothing is missing there any more: who waits there, or comes later, gets a zero page."""
        spaces = self.guest.spaces[index]
        waiting = [k for k in self.asked if k[0] == index and start <= k[1] < end]
        for k in waiting:
            self.asked.pop(k)
            self.guest.faults.extend((p.space, p.start) for p in spaces.places(k[1], k[1] + PAGE))
        for p in spaces.places(start, end):
            spaces.arrived(p.space, p.start, p.end)

    # -- the page store --------------------------------------------------------------------------------------------------------

    def _place_stored(self, index: int, addr: int, length: int) -> None:
        try:
            self.store.read(index, addr, memoryview(self._page)[:length])
        except PackingError as e:
            self.say("lost", why=f"the pages at {addr:#x} cannot be read: {e}")
            raise wire.WireError(str(e)) from e
        self._place(index, addr, self._page_address, length)
        self.store.forget(index, addr, length)
        self.counts["stored"] += length
        for at in range(addr, addr + length, PAGE):
            self.asked.pop((index, at), None)

    def _feed(self) -> None:
        """Some of what came before the freeze, where it belongs."""
        for r in self.store.chunks(FEED):
            self._place_stored(r.process, r.start, r.end - r.start)
            return

    # -- the end ---------------------------------------------------------------------------------------------------------------

    @property
    def missing(self) -> int:
        """Bytes that have not arrived."""
        if self.whole:
            return 0
        return max(0, sum(m.bytes for s in self.guest.spaces.values() for m in s.missing.values()) - self.store.held)

    def _look_whether_whole(self) -> None:
        """The source has sent everything: if all that is not in its place is in the store, it may forget its own.  Nothing depends on it
        any more, nor on this process: another finds the store with the guardians."""
        if rest := self.missing_ranges()[:16]:  # none, if the source has done its work
            for index, start, _ in rest:
                self.asked[index, start] = time.monotonic()
                self._request(index, start)
            return
        self.store.keep_current()
        self.whole = True
        for stream in (self.demand, self.push):
            if stream is not None:
                self.poll.unregister(stream.sock)  # nothing more comes on them
        self.say("whole", **self._figures())  # the keeper knows it before the source: it answers, and then the source is told

    def release_source(self, s: socket.socket | None = None) -> bool:
        """Tell the source that its memory is not needed any more, on ``s`` or the connection that there is; whether it could be told."""
        if s is None:
            if self.push is None:
                return False
            s = self.push.sock
        try:
            s.setblocking(True)
            wire.send(s, op="all", faults=self.counts["faults"])
            s.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        self.released = True
        return True

    def _figures(self) -> dict[str, Any]:
        ordered = sorted(self.latencies)
        return self.counts | {"fault_p50_us": round((ordered[len(ordered) // 2] if ordered else 0.0) * 1e6)}

    @property
    def silent(self) -> float:
        """Seconds for which a source that owes us something has said nothing."""
        owes = self.pushing and not self.whole
        return time.monotonic() - self._heard_at if owes else 0.0

    def finished(self) -> bool:
        """Whether nothing is missing, or nobody is left who could miss it."""
        if not self.pushing or self.over:
            return self.over
        if not self.guest.owner:
            return True
        return self.whole and not self.asked and self.idle and not self.guest.faults

    def finish(self) -> None:
        """Let the memory be ordinary memory, and tell the source, if it does not know yet, that it may forget its own."""
        self.over = True
        for fd in list(self.guest.owner):
            self.guest.close(fd)
        if not self.released:
            self.release_source()
        self.say("all", **self._figures())

    def wanted(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """For tests: what is missing, by index."""
        return [(i, join(s.left())) for i, s in self.guest.spaces.items()]
