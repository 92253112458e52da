"""The home agent's end of a pipe of the guest.

The agent keeps home's real descriptor for as long as the guest lives, and gets a new connection for every cell that the guest comes to run
in (an epoch).  What the old cell's guest wrote comes out strictly before what the new one writes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

from mig.channels.frames import Frame, FrameError, Kind, number
from mig.channels.preview import HomePreview
from mig.channels.relay import WINDOW, Allowance, DemandedSource, HangupWatch, Link, Sink, Source, reopen


def _nothing(*_: object) -> None:
    """A callback that nobody asked for."""


class HomePipe:
    """What both directions have in common; :func:`home_pipe` makes one.

    ``fd`` is a copy of the guest's descriptor (``pidfd_getfd``), owned from now on; its description is shared with others at home, so that
    reading and writing go through a description of our own.
    ``on_closed()``: the guest has closed its last descriptor of the pipe: the deputy must close its own, or the world at home never knows.
    ``on_lost(error)``: the connection of the current epoch is gone, though the guest did not end.
    """

    def __init__(self, fd: int, on_closed: Callable[[], None], on_lost: Callable[[Exception], None]) -> None:
        self.fd = fd
        self._on_closed, self._on_lost_cb = on_closed, on_lost
        self._link: Link | None = None
        self._gone: asyncio.Event = asyncio.Event()
        self.closed = False
        """The guest has closed it, or the world at home has: nothing passes any more."""

    def attach(self, sock: socket.socket) -> None:
        """The guest runs in a new cell, whose keeper is at the other end of ``sock``; undoes :meth:`hold`."""
        raise NotImplementedError

    async def hold(self) -> None:
        """Pass no more input on; when it returns, all that was passed on has reached the keeper.  Output goes on.

        Raises ``ConnectionError`` when the connection is lost.
        """

    def resume(self) -> None:
        """The move was given up: go on with the same cell."""

    def detach(self) -> None:
        """The guest uses the real descriptor now (a cell at home without a proxy); :meth:`attach` takes over again."""
        if self._link is not None:
            self._link.close()
            self._link = None

    @property
    def idle(self) -> bool:
        """Nothing waits in memory: a guest that comes home may be given the real descriptor."""
        return True

    async def finished(self) -> None:
        """The guest has ended: return when all that it wrote has reached home's descriptor, or has no reader there any more."""

    def close(self) -> None:
        """Close everything, at once; idempotent."""
        self.detach()
        self._close_fd()

    def _close_fd(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _send(self, kind: Kind, payload: bytes = b"") -> None:
        if self._link is not None:
            self._link.send(kind, payload)

    def _lost(self, e: Exception) -> None:
        if not self._gone.is_set():  # else the guest has ended and its keeper goes
            self._gone.set()
            self._on_lost_cb(e)


class HomeInput(HomePipe):
    """A pipe that the guest reads: home's descriptor → cell.

    With ``shared``, others at home read it too, and only what the guest waits for is taken from it, or what it read of a preview.
    """

    def __init__(self, fd: int, shared: bool, on_closed: Callable[[], None], on_lost: Callable[[Exception], None]) -> None:
        super().__init__(fd, on_closed, on_lost)
        own = reopen(fd, os.O_RDONLY)
        self._source: Source | DemandedSource
        if shared:
            self._source = DemandedSource(own, lambda: self._send(Kind.WANT), self._data, self._end)
        else:
            self._source = Source(own, self._data, self._end)
        self._preview = HomePreview(own, lambda: self._send(Kind.RETRACT))
        self._eof = False

    def attach(self, sock: socket.socket) -> None:
        """As :meth:`HomePipe.attach`."""
        self.detach()
        self._gone.clear()
        self._link = Link(sock, self._frame, self._lost)
        self._link.start()
        if self._eof:
            self._send(Kind.EOF)
        elif self._source.open:
            if isinstance(self._source, Source):
                self._source.set_credit(0)
            self._source.resume()

    async def hold(self) -> None:
        """As :meth:`HomePipe.hold`."""
        if self._source.open:
            self._source.pause()
        if self._link is not None:
            await self._link.request(Kind.STOP)

    def resume(self) -> None:
        """As :meth:`HomePipe.resume`; a cell that uses the real descriptor has nobody read it in between."""
        if self._source.open and self._link is not None:
            self._source.resume()

    def detach(self) -> None:
        """As :meth:`HomePipe.detach`."""
        if self._source.open:
            self._source.pause()
        self._preview.forget()
        super().detach()

    def close(self) -> None:
        """As :meth:`HomePipe.close`."""
        super().close()
        self._preview.close()
        self._source.close()

    def _lost(self, e: Exception) -> None:
        if self._source.open:
            self._source.pause()
        self._preview.forget()
        super()._lost(e)

    def _data(self, data: bytes) -> None:
        self._send(Kind.DATA, data)

    def _end(self) -> None:
        self._preview.close()
        self._source.close()
        self._eof = True
        self._send(Kind.EOF)

    def _show(self, source: DemandedSource, n: int) -> None:
        if not source.asked:
            return  # a move began meanwhile; whoever goes on will be asked again
        data = self._preview.take(n)
        if data:
            self._send(Kind.PREVIEW, data)
        elif data is None:
            source.ask_again()  # another reader was faster
        else:
            self._end()

    def _read_ahead(self, source: DemandedSource, n: int) -> None:
        self._preview.consumed(n)
        if not self._preview.shown:
            self._preview.forget()
            source.ask_again()

    def _frame(self, frame: Frame) -> None:
        if isinstance(self._source, DemandedSource) and self._source.open:
            if frame.kind is Kind.PEEK:
                self._show(self._source, frame.number)
                return
            if frame.kind is Kind.CONSUMED:
                self._read_ahead(self._source, frame.number)
                return
            if frame.kind is Kind.RETRACT:
                self._preview.forget()
                self._source.ask_again()
                return
        if frame.kind is Kind.CREDIT:
            if isinstance(self._source, Source):
                self._source.allow(frame.number)
            else:
                self._preview.forget()
                self._source.grant(frame.number)
        elif frame.kind is Kind.BROKEN:
            self.closed = True
            self._preview.close()
            self._source.close()
            self._close_fd()
            self._on_closed()
        elif frame.kind is Kind.FIN:
            self._gone.set()
            self._send(Kind.ACK, frame.payload)
        elif frame.kind is Kind.SYNC:
            self._send(Kind.ACK, frame.payload)
        else:
            raise FrameError(f"{frame.kind.name} from the reader of a pipe")


class HomeOutput(HomePipe):
    """A pipe that the guest writes: cell → home's descriptor."""

    def __init__(self, fd: int, on_closed: Callable[[], None], on_lost: Callable[[Exception], None]) -> None:
        super().__init__(fd, on_closed, on_lost)
        self._next: list[socket.socket] = []
        self._over = True  # the current connection brings nothing more, as far as we know
        self._allowance = Allowance(WINDOW, lambda n: self._send(Kind.CREDIT, number(n)))
        self._sink: Sink | None = None
        self._watch: HangupWatch | None = None
        try:
            own = reopen(fd, os.O_WRONLY)
        except OSError as e:
            if e.errno != errno.ENXIO:  # no reader any more
                raise
            self.closed = True
        else:
            self._sink = Sink(own, self._allowance.written, self._broken)
            self._watch = HangupWatch(own, self._broken)

    @property
    def idle(self) -> bool:
        """As :attr:`HomePipe.idle`."""
        return self._sink is None or not self._sink.pending

    def attach(self, sock: socket.socket) -> None:
        """As :meth:`HomePipe.attach`; frames of ``sock`` wait until the connection before has said STOP."""
        self._next.append(sock)
        self._switch()

    def detach(self) -> None:
        """As :meth:`HomePipe.detach`."""
        super().detach()
        self._over = True
        for sock in self._next:
            sock.close()
        self._next.clear()

    async def finished(self) -> None:
        """As :meth:`HomePipe.finished`."""
        if self._link is not None:
            await self._gone.wait()
        if self._sink is not None:
            await self._sink.flushed()

    def close(self) -> None:
        """As :meth:`HomePipe.close`."""
        super().close()
        if self._watch is not None:
            self._watch.close()
        if self._sink is not None:
            self._sink.close()

    def _switch(self) -> None:
        if not self._over or not self._next:
            return
        if self._link is not None:
            self._link.close()
        self._over = False
        self._gone.clear()
        self._link = Link(self._next.pop(0), self._frame, self._lost)
        self._link.start()
        if self.closed:
            self._send(Kind.BROKEN)
        else:
            self._allowance.open(self._sink.pending if self._sink else 0)

    def _lost(self, e: Exception) -> None:
        self._over = True
        super()._lost(e)
        self._switch()

    def _frame(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA:
            self._over = False
            if self._sink is not None and not self.closed:
                self._sink.put(frame.payload)
        elif frame.kind is Kind.EOF:
            self._over = True
            self._gone.set()
            self._all_closed()
        elif frame.kind in (Kind.STOP, Kind.FIN):
            self._over = True
            if frame.kind is Kind.FIN:
                self._gone.set()
            self._send(Kind.ACK, frame.payload)
            self._switch()
        else:
            raise FrameError(f"{frame.kind.name} from the writer of a pipe")

    def _all_closed(self) -> None:
        """The guest's last writer is gone: the reader at home sees the end after what is still in memory."""
        if self.closed:
            return
        self.closed = True
        if self._watch is not None:
            self._watch.close()
        if self._sink is not None:
            self._sink.close_when_flushed()
        self._close_fd()
        self._on_closed()

    def _broken(self) -> None:
        """Home's last reader is gone."""
        if self.closed:
            return
        self.closed = True
        if self._watch is not None:
            self._watch.close()
        if self._sink is not None:
            self._sink.close()
        self._send(Kind.BROKEN)


def home_pipe(
    fd: int,
    direction: str,
    *,
    shared: bool = False,
    on_closed: Callable[[], None] = _nothing,
    on_lost: Callable[[Exception], None] = _nothing,
) -> HomePipe:
    """The home end of a pipe that the guest reads (``direction`` "r") or writes ("w"); nothing passes before :meth:`HomePipe.attach`.

    Must be called in the agent's running loop.  Raises ``OSError`` when the pipe cannot be opened anew.
    """
    if direction == "r":
        return HomeInput(fd, shared, on_closed, on_lost)
    return HomeOutput(fd, on_closed, on_lost)
