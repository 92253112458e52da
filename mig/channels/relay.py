"""What all channels are made of: a framed connection, a descriptor that is read, a descriptor that is written.

Everything is driven by callbacks of the running asyncio loop, without tasks: nothing can be cancelled between reading a byte and passing it
on.  Descriptors must be non-blocking and must be open file descriptions of our own (see :func:`reopen`): O_NONBLOCK on a description that
the shell shares would reach the shell.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable

from mig.channels.frames import MAX_PAYLOAD, Decoder, Frame, FrameError, Kind, encode, number

WINDOW = 256 << 10
"""Bytes of a pipe that may be on their way or wait in the receiver's memory.  More lets a fast writer run on over a long link; each byte
costs memory at the receiver, and is lost to other readers when the guest ends without having read it."""


def reopen(fd: int, flags: int) -> int:
    """A new open file description, non-blocking, of the pipe or terminal behind ``fd``.

    Raises ``OSError``: ``ENXIO`` for the writing end of a pipe without readers, ``EIO`` for a terminal that was hung up.
    """
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


class Link:
    """Frames over a connected socket.  Order is kept; what is sent must be bounded by the peer's credit, as it waits in memory.

    ``on_frame`` gets every frame but ACK; ``on_lost`` is called once, when the peer is gone or talks nonsense, not after :meth:`close`.
    """

    def __init__(self, sock: socket.socket, on_frame: Callable[[Frame], None], on_lost: Callable[[Exception], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._on_frame, self._on_lost = on_frame, on_lost
        self._decoder = Decoder()
        self._out = bytearray()
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self.open = True

    def start(self) -> None:
        """Take frames from now on; until then they wait in the socket."""
        if self.open:
            self._loop.add_reader(self._fd, self._readable)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Queue one frame; nothing happens on a link that is lost or closed."""
        if not self.open:
            return
        idle = not self._out
        self._out += encode(kind, payload)
        if idle:
            self._flush()

    async def request(self, kind: Kind) -> None:
        """Send STOP, FIN or SYNC and wait for the peer's ACK; raises ``ConnectionError`` when the link is or gets lost."""
        if not self.open:
            raise ConnectionResetError(errno.ECONNRESET, "the channel's connection is gone")
        self._serial += 1
        done = self._loop.create_future()
        self._waiting[self._serial] = done
        try:
            self.send(kind, number(self._serial))
            await done
        finally:
            self._waiting.pop(self._serial, None)

    def close(self) -> None:
        """Close the connection; idempotent.  Frames that the kernel has not taken yet are dropped: wait for an ACK where it matters."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        for f in self._waiting.values():
            if not f.done():
                f.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "the channel was closed"))

    def _lose(self, e: Exception) -> None:
        if self.open:
            self.close()
            self._on_lost(e)

    def _flush(self) -> None:
        try:
            while self._out:
                n = self._sock.send(self._out)
                del self._out[:n]
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._flush)
            return
        except OSError as e:
            # Not from within the caller's send(): it may stand in the middle of a change of its own.
            self._out.clear()
            self._loop.call_soon(self._lose, e)
        self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(MAX_PAYLOAD * 2)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the channel's peer has closed the connection")
            frames = self._decoder.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._lose(e)
            return
        for frame in frames:
            if not self.open:  # closed by the handler of the frame before
                return
            try:
                self._handle(frame)
            except FrameError as e:
                self._lose(e)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is not Kind.ACK:
            self._on_frame(frame)
            return
        f = self._waiting.get(frame.number)
        if f is not None and not f.done():
            f.set_result(None)


class Source:
    """A descriptor that is read as far as the receiver gave credit; it owns ``fd``."""

    def __init__(self, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self.fd = fd
        self._on_data, self._on_end = on_data, on_end
        self._credit = 0
        self._paused = False
        self._loop = asyncio.get_running_loop()
        self._watching = False
        self.open = True

    def allow(self, n: int) -> None:
        """``n`` bytes more may be read."""
        self._credit += n
        self._watch()

    def set_credit(self, n: int) -> None:
        """``n`` bytes may be read: the receiver is another one now."""
        self._credit = n
        self._watch()

    def pause(self) -> None:
        """Read nothing until :meth:`resume`."""
        self._paused = True
        self._watch()

    def resume(self) -> None:
        """Go on reading."""
        self._paused = False
        self._watch()

    def take_all(self, limit: int) -> None:
        """Read what is there now, whatever the credit, up to ``limit`` bytes (writers that still run could go on for ever)."""
        while self.open and limit > 0:
            n = self._read(min(limit, MAX_PAYLOAD))
            if not n:
                return
            limit -= n

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self.open:
            self.open = False
            self._watch()
            os.close(self.fd)

    def _watch(self) -> None:
        want = self.open and not self._paused and self._credit > 0
        if want and not self._watching:
            self._loop.add_reader(self.fd, self._readable)
        elif self._watching and not want:
            self._loop.remove_reader(self.fd)
        self._watching = want

    def _readable(self) -> None:
        self._read(min(self._credit, MAX_PAYLOAD))

    def read_some(self, n: int) -> bytes:
        """One non-blocking read; raises ``BlockingIOError`` when there is nothing now."""
        return os.read(self.fd, n)

    def _read(self, n: int) -> int:
        try:
            data = self.read_some(n)
        except (BlockingIOError, InterruptedError):
            return 0
        if not data:
            self.close()
            self._on_end()
            return 0
        self._credit -= len(data)  # below zero after take_all(): the receiver's next credit pays for it
        self._watch()
        self._on_data(data)
        return len(data)


class DemandedSource:
    """A descriptor that others read too: only as much is taken as the receiver asked for, and only when it asked; it owns ``fd``.

    ``ask()``: there is something; :meth:`grant` answers it, sooner or later, and is good for one read.  ``on_end()``: a read gave nothing;
    it closes the source where that is final.
    """

    def __init__(self, fd: int, ask: Callable[[], None], on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self.fd = fd
        self._ask, self._on_data, self._on_end = ask, on_data, on_end
        self._asked = False
        self._paused = True
        self._watching = False
        self._loop = asyncio.get_running_loop()
        self.open = True

    def pause(self) -> None:
        """Take nothing and ask for nothing until :meth:`resume`; a grant under way is void."""
        self._paused, self._asked = True, False
        self._watch()

    def resume(self) -> None:
        """Ask again as soon as there is something: the receiver may be another one now, who does not know of an earlier question."""
        self._paused, self._asked = False, False
        self._watch()

    @property
    def asked(self) -> bool:
        """A question is open."""
        return self._asked

    def ask_again(self) -> None:
        """The question was answered in another way, or is moot: ask as soon as there is something."""
        self._asked = False
        if self.open:
            self._watch()

    def grant(self, n: int) -> None:
        """Somebody waits for up to ``n`` bytes: one read."""
        if not self._asked or not self.open:
            return
        self._asked = False
        try:
            data = os.read(self.fd, min(n, MAX_PAYLOAD))
        except (BlockingIOError, InterruptedError):
            pass  # another reader was faster
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            self._on_end()  # a terminal that was hung up
        else:
            if data:
                self._on_data(data)
            else:
                self._on_end()
        self._watch()

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self.open:
            self.open = False
            self._watch()
            os.close(self.fd)

    def _watch(self) -> None:
        want = self.open and not self._paused and not self._asked
        if want and not self._watching:
            self._loop.add_reader(self.fd, self._readable)
        elif self._watching and not want:
            self._loop.remove_reader(self.fd)
        self._watching = want

    def _readable(self) -> None:
        self._asked = True
        self._watch()
        self._ask()


class Allowance:
    """The receiver's side of credit: never more than ``window`` bytes on their way or in memory, but for what a drain brought at once."""

    def __init__(self, window: int, give: Callable[[int], None]) -> None:
        self._window, self._give = window, give
        self._debt = 0

    def open(self, pending: int) -> None:
        """A new sender, without credit, while ``pending`` bytes of the one before wait in memory."""
        self._debt = max(0, pending - self._window)
        if pending < self._window:
            self._give(self._window - pending)

    def owe(self, n: int) -> None:
        """The next ``n`` bytes that leave memory came without credit."""
        self._debt += n

    def written(self, n: int) -> None:
        """``n`` bytes have left memory."""
        paid = min(self._debt, n)
        self._debt -= paid
        if n > paid:
            self._give(n - paid)


class Sink:
    """A descriptor that is written in order, as fast as its reader takes it; it owns ``fd``.

    ``on_written(n)``: so many bytes more have left our memory (also when they were dropped, as the reader is gone).
    ``on_broken()``: called once, when the reader is gone (``EPIPE``; a terminal: ``EIO``); the sink is closed then.
    """

    def __init__(self, fd: int, on_written: Callable[[int], None], on_broken: Callable[[], None]) -> None:
        self.fd = fd
        self._on_written, self._on_broken = on_written, on_broken
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._flushed: list[asyncio.Future[None]] = []
        self._then_close = False
        self.open = True

    @property
    def pending(self) -> int:
        """Bytes in our memory."""
        return len(self._buffer)

    def put(self, data: bytes) -> None:
        """Write, now or as soon as there is room."""
        if not self.open:
            self._loop.call_soon(self._on_written, len(data))  # nobody will ever read it: as good as written
            return
        idle = not self._buffer
        self._buffer += data
        if idle:
            self._write()

    def close_when_flushed(self) -> None:
        """Close the descriptor after what is in memory: the reader sees the end of the file."""
        self._then_close = True
        if not self._buffer:
            self.close()

    async def flushed(self) -> None:
        """Return when nothing is in memory, or the reader is gone."""
        if self._buffer and self.open:
            f = self._loop.create_future()
            self._flushed.append(f)
            await f

    def take(self) -> bytes:
        """What was not written yet, which is forgotten here."""
        data = bytes(self._buffer)
        self._buffer.clear()
        if self.open:
            self._loop.remove_writer(self.fd)
        return data

    def close(self) -> None:
        """Close the descriptor and drop what is in memory; idempotent."""
        if self.open:
            self.open = False
            self._loop.remove_writer(self.fd)
            os.close(self.fd)
        n = len(self._buffer)
        self._buffer.clear()
        if n:
            self._loop.call_soon(self._on_written, n)
        self._wake()

    def _wake(self) -> None:
        for f in self._flushed:
            if not f.done():
                f.set_result(None)
        self._flushed.clear()

    def write_some(self, data: bytes) -> int:
        """One non-blocking write; returns how many of the bytes of ``data`` are done with."""
        return os.write(self.fd, data)

    def _write(self) -> None:
        written = 0
        try:
            while self._buffer:
                n = self.write_some(bytes(self._buffer[:MAX_PAYLOAD]))
                del self._buffer[:n]
                written += n
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self.fd, self._write)
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.close()
            self._on_broken()
        if not self._buffer and self.open:
            self._loop.remove_writer(self.fd)
            self._wake()
            if self._then_close:
                self.close()
        if written:
            self._on_written(written)


class HangupWatch:
    """Calls back once when the other end of a pipe's writing end is gone, although nobody writes: epoll reports EPOLLERR unasked.

    asyncio can only watch for reading or writing, so the descriptor sits in an epoll of its own, which becomes readable.
    """

    def __init__(self, fd: int, on_hangup: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._epoll.register(fd, 0)
        self._on_hangup = on_hangup
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def _ready(self) -> None:
        if self._epoll.poll(0):
            self.close()
            self._on_hangup()

    def close(self) -> None:
        """Stop watching; idempotent.  To be called before the descriptor is closed."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
