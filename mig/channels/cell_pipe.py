"""The keeper's end of a pipe of the guest: a pipe of the cell, of which the guest has one end and the keeper the other."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterable

from mig.channels import demand
from mig.channels.frames import Frame, FrameError, Kind, number
from mig.channels.gate import Gate
from mig.channels.preview import EAGER, PATIENCE, SIZE, CellPreview, empty_pipe
from mig.channels.relay import WINDOW, Allowance, HangupWatch, Link, Sink, Source
from mig.channels.tty_modes import unread


def _nothing(*_: object) -> None:
    """A callback that nobody asked for."""


class CellPipe:
    """What both directions have in common; :func:`cell_pipe` makes one.

    ``fd`` is the keeper's end, owned from now on and made non-blocking (the guest's end is another description).  No other process may hold
    a copy of it.  ``on_lost(error)``: the connection to the home agent is gone.
    """

    def __init__(self, sock: socket.socket, on_lost: Callable[[Exception], None]) -> None:
        self._link = Link(sock, self._frame, on_lost)

    def start(self) -> None:
        """The guest runs here from now on: pass data."""
        self._link.start()

    async def drain(self) -> None:
        """The guest stands still, for a move: when it returns, all that it wrote is with the home agent.

        Raises ``ConnectionError`` when the connection is lost.
        """

    def rest(self) -> bytes:
        """The guest stands still: the input that it has not read, for the next cell's ``prefix``.  :meth:`resume` puts it back."""
        return b""

    def resume(self) -> None:
        """The move was given up, the guest runs on here."""

    async def finish(self) -> None:
        """The guest has ended: when it returns, all that it wrote is with the home agent, who knows that there is no more.

        Raises ``ConnectionError`` when the connection is lost.
        """
        await self._link.request(Kind.FIN)

    def close(self) -> None:
        """Close everything, at once; idempotent."""
        self._link.close()

    def _frame(self, frame: Frame) -> None:
        raise NotImplementedError


class CellOutput(CellPipe):
    """A pipe that the guest writes; ``fd`` is its reading end."""

    def __init__(self, fd: int, sock: socket.socket, on_lost: Callable[[Exception], None]) -> None:
        super().__init__(sock, on_lost)
        os.set_blocking(fd, False)
        self._source = Source(fd, self._data, self._end)
        self._source.pause()
        self._capacity = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)

    def start(self) -> None:
        """As :meth:`CellPipe.start`."""
        super().start()
        self._source.resume()

    async def drain(self) -> None:
        """As :meth:`CellPipe.drain`."""
        self._take_all()
        await self._link.request(Kind.STOP)

    def resume(self) -> None:
        """As :meth:`CellPipe.resume`."""
        if self._source.open:
            self._source.resume()

    async def finish(self) -> None:
        """As :meth:`CellPipe.finish`."""
        self._take_all()
        await self._link.request(Kind.FIN)

    def close(self) -> None:
        """As :meth:`CellPipe.close`."""
        super().close()
        self._source.close()

    def _take_all(self) -> None:
        if self._source.open:
            self._source.pause()
            self._capacity = fcntl.fcntl(self._source.fd, fcntl.F_GETPIPE_SZ)  # the guest may have changed it
            self._source.take_all(self._capacity)

    def _data(self, data: bytes) -> None:
        self._link.send(Kind.DATA, data)

    def _end(self) -> None:
        self._link.send(Kind.EOF)

    def _frame(self, frame: Frame) -> None:
        if frame.kind is Kind.CREDIT:
            if self._source.open:
                self._source.allow(frame.number)
        elif frame.kind is Kind.BROKEN:
            self._source.close()  # without a reader the guest gets SIGPIPE, as at home
        else:
            raise FrameError(f"{frame.kind.name} from the reader of a pipe")


class CellInput(CellPipe):
    """A pipe that the guest reads; ``fd`` is its writing end.  ``prefix`` comes first: what the guest had not read where it was before."""

    def __init__(
        self,
        fd: int,
        sock: socket.socket,
        prefix: bytes,
        shared: bool,
        pids: Callable[[], Iterable[int]],
        on_lost: Callable[[Exception], None],
    ) -> None:
        super().__init__(sock, on_lost)
        os.set_blocking(fd, False)
        # A reference that is neither a reader nor a writer: through it the pipe can be emptied after we have closed our end of it.
        self._path = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        self._allowance = Allowance(WINDOW, lambda n: self._link.send(Kind.CREDIT, number(n)))
        self._sink = Sink(fd, self._written, self._broken)
        self._watch: HangupWatch | None = None
        self._prefix, self._shared = prefix, shared
        self._eof = self._reader_gone = self._closed = False
        pipe = demand.pipe(os.fstat(fd).st_ino)
        self._gate = Gate(pids, pipe, self._empty, self._grant, PATIENCE, lambda: self._link.send(Kind.PEEK, number(SIZE)))
        self._preview = CellPreview(self._consumed)
        self._unconfirmed = False  # home may not know yet what was read of a preview

    def start(self) -> None:
        """As :meth:`CellPipe.start`."""
        super().start()
        self._watch = HangupWatch(self._sink.fd, self._broken)
        if not self._shared:
            self._allowance.open(0)
        self._allowance.owe(len(self._prefix))
        self._put_back(self._prefix)

    async def drain(self) -> None:
        """As :meth:`CellPipe.drain`; and home has taken what the guest read of a preview: the next to read home's pipe finds the rest."""
        self._gate.forget()
        self._withdraw()
        if self._unconfirmed:
            await self._link.request(Kind.SYNC)
            self._unconfirmed = False

    def rest(self) -> bytes:
        """As :meth:`CellPipe.rest`."""
        self._gate.forget()
        if self._reader_gone:
            return b""
        self._withdraw()
        left = empty_pipe(self._path)
        self._allowance.owe(len(left))  # credit was given for them when they went into the pipe
        self._prefix = left + (self._sink.take() if self._sink.open else b"")
        return self._prefix

    def resume(self) -> None:
        """As :meth:`CellPipe.resume`."""
        if self._prefix and not self._sink.open and not self._reader_gone:
            try:
                writer = os.open(f"/proc/self/fd/{self._path}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as e:
                if e.errno != errno.ENXIO:
                    raise
                self._broken()
                return
            self._sink = Sink(writer, self._written, self._broken)
        self._put_back(self._prefix)

    async def finish(self) -> None:
        """As :meth:`CellPipe.finish`."""
        self._gate.forget()
        self._preview.settle()
        await super().finish()

    def close(self) -> None:
        """As :meth:`CellPipe.close`."""
        super().close()
        self._gate.forget()
        self._preview.forget()
        if not self._closed:
            self._closed = True
            self._close_sink()
            os.close(self._path)

    def _put_back(self, prefix: bytes) -> None:
        self._prefix = b""
        if prefix and self._sink.open:
            self._sink.put(prefix)
        if self._eof:
            self._finish_sink()

    def _written(self, n: int) -> None:
        if not self._shared:
            self._allowance.written(n)

    def _empty(self) -> bool:
        if not self._sink.open or self._sink.pending or self._preview.shown:
            return False
        return not unread(self._sink.fd)

    def _grant(self, n: int) -> None:
        self._gate.patience = PATIENCE
        self._link.send(Kind.CREDIT, number(n))

    def _show(self, data: bytes) -> None:
        if not data or not self._empty():
            self._link.send(Kind.RETRACT)
            return
        self._sink.put(data)
        if self._sink.open:
            self._preview.show(self._sink.fd, len(data))

    def _consumed(self, n: int) -> None:
        self._gate.patience = EAGER
        self._unconfirmed = True
        self._link.send(Kind.CONSUMED, number(n))

    def _withdraw(self) -> None:
        """Out of the guest's pipe with what it has not read of a preview; a guest that runs may read meanwhile."""
        if not self._preview.shown:
            return
        left = len(empty_pipe(self._path))
        self._preview.settle(left)

    def _frame(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA:
            self._sink.put(frame.payload)
            self._gate.delivered()
        elif frame.kind is Kind.EOF:
            self._eof = True
            self._finish_sink()
        elif frame.kind is Kind.WANT:
            self._gate.ask()
        elif frame.kind is Kind.PREVIEW:
            self._show(frame.payload)
        elif frame.kind is Kind.RETRACT:
            self._withdraw()
            self._link.send(Kind.RETRACT)
        elif frame.kind is Kind.STOP:
            self._gate.forget()
            self._link.send(Kind.ACK, frame.payload)
        else:
            raise FrameError(f"{frame.kind.name} from the writer of a pipe")

    def _finish_sink(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._sink.open:
            self._sink.close_when_flushed()

    def _close_sink(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._sink.close()

    def _broken(self) -> None:
        """The guest has closed its last reading descriptor."""
        if not self._reader_gone:
            self._reader_gone = True
            self._preview.settle()
            self._close_sink()
            self._link.send(Kind.BROKEN)


def cell_pipe(
    fd: int,
    sock: socket.socket,
    direction: str,
    *,
    prefix: bytes = b"",
    shared: bool = False,
    pids: Callable[[], Iterable[int]] = tuple,
    on_lost: Callable[[Exception], None] = _nothing,
) -> CellPipe:
    """The keeper's end of a pipe that the guest reads (``direction`` "r") or writes ("w"); nothing passes before :meth:`CellPipe.start`.

    ``sock``: the connection to the home agent.  ``prefix``, ``shared``, ``pids`` (the guest's processes as this node numbers them) matter
    for "r" only.  Must be called in the keeper's running loop.
    """
    asyncio.get_running_loop()
    if direction == "r":
        return CellInput(fd, sock, prefix, shared, pids, on_lost)
    return CellOutput(fd, sock, on_lost)
