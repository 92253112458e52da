"""The keeper's end of the guest's terminal: the master of a pseudo-terminal whose line discipline does nothing to the input (EXTPROC)."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import termios
from collections.abc import Callable, Iterable

from mig.channels import demand
from mig.channels.frames import MAX_PAYLOAD, Frame, FrameError, Kind, number
from mig.channels.gate import Gate
from mig.channels.relay import Link, Sink, Source
from mig.channels.tty_modes import (
    PKT_DATA,
    PKT_FLUSHREAD,
    PKT_IOCTL,
    TIOCSIG,
    Modes,
    get_modes,
    has_extproc,
    open_slave,
    packet_mode,
    set_modes,
    unread,
)

QUEUE = 256 << 10
"""Bytes that a pseudo-terminal can hold and more: when so many were read, all that was written before has been."""
NEWLINE_WAIT = 0.005
"""Seconds that a carriage return at the end of all output waits for its newline, which the kernel's buffers may bring a moment later."""


PATIENCE = 1.0
"""Seconds until a guest that is never seen waiting, as it only polls, is given one line, or what there is, all the same."""
RENEWAL = 0.05
"""Seconds until EXTPROC is set again after the guest has cleared it: `stty` looks whether the modes are those that it has set."""
WINSIZE = 8
"""Bytes of struct winsize."""


def _nothing(*_: object) -> None:
    """A callback that nobody asked for."""


class PacketSource(Source):
    """A master in packet mode.  ``on_status(byte)``: something was set, before the data that follows; ``on_empty()``: all was read."""

    def __init__(
        self,
        fd: int,
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
        on_status: Callable[[int], None],
        on_empty: Callable[[], None],
    ) -> None:
        super().__init__(fd, on_data, on_end)
        self._on_status, self._on_empty = on_status, on_empty

    def _readable(self) -> None:
        for _ in range(16):  # until it is empty, but other channels have their turn too
            if not self._watching or self._read(min(self._credit, MAX_PAYLOAD)) == 0:
                return

    def read_some(self, n: int) -> bytes:
        """As :meth:`Source.read_some`."""
        while True:
            try:
                data = os.read(self.fd, n + 1)
            except BlockingIOError:
                self._on_empty()
                raise
            except OSError as e:
                if e.errno != errno.EIO:
                    raise
                return b""  # no slave is open; ours is, until close()
            if data[:1] == bytes((PKT_DATA,)):
                return data[1:]
            self._on_status(data[0])


class CellTerminal:
    """The guest's terminal in its cell.

    ``master``: owned from now on; no other process may hold a copy.  ``sock``: the connection to the home agent.  ``prefix``: input that
    the guest had not read where it was before.  ``pids``: the guest's processes as this node numbers them.
    """

    def __init__(
        self,
        master: int,
        sock: socket.socket,
        *,
        prefix: bytes = b"",
        pids: Callable[[], Iterable[int]] = tuple,
        on_lost: Callable[[Exception], None] = _nothing,
    ) -> None:
        os.set_blocking(master, False)
        packet_mode(master)
        self._master = master
        self._slave = open_slave(master)
        self._link = Link(sock, self._frame, on_lost)
        self._source = PacketSource(os.dup(master), self._output, _nothing, self._status, self._all_read)
        self._source.pause()
        self._sink = Sink(os.dup(master), _nothing, _nothing)
        device = os.fstat(self._slave).st_rdev
        self._gate = Gate(pids, demand.tty(device), self._empty, self._grant, PATIENCE, self._peek)
        self._prefix = prefix
        self._modes = get_modes(master)
        self._late_modes: Modes | None = None
        self._late_after = 0
        self._told = 0  # frames of modes that were sent
        self._return = b""  # a carriage return that waits for its newline
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.open = True

    # -- epochs ------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Pass data.  To be called when CRIU has set the terminal as it was and before the guest runs: modes set later are the guest's."""
        self._modes = get_modes(self._master)
        set_modes(self._master, self._modes, extproc=True)
        self._link.start()
        self._source.resume()
        self._put_back()

    async def drain(self) -> None:
        """The guest stands still, for a move: when it returns, all that it wrote is with the home agent.  Raises ``ConnectionError``."""
        self._source.pause()
        self._take_all()
        await self._link.request(Kind.STOP)

    def rest(self) -> bytes:
        """The guest stands still: the input that it has not read, for the next cell's ``prefix``.  :meth:`resume` puts it back."""
        self._gate.forget()
        if self.open:
            self._prefix = self._unread_input() + self._sink.take()
        return self._prefix

    def resume(self) -> None:
        """The move was given up, the guest runs on here."""
        if self.open:
            self._source.resume()
            self._put_back()

    async def finish(self) -> None:
        """The guest has ended: when it returns, all that it wrote is with the home agent, and what it did not read too.

        Raises ``ConnectionError``.
        """
        self._source.pause()
        self._take_all()
        self._gate.forget()
        self._return_input()
        await self._link.request(Kind.FIN)

    def signal_foreground(self, sig: int) -> None:
        """Send SIGINT, SIGQUIT or SIGTSTP to the process group in the cell that has the terminal, as its line discipline would.

        Raises ``OSError`` for other signals.
        """
        if self.open:
            fcntl.ioctl(self._master, TIOCSIG, sig)

    def close(self) -> None:
        """Close everything, at once; idempotent."""
        self._link.close()
        self._hang_up()

    def _hang_up(self) -> None:
        """Without its master the slave is hung up: reads give the end of file, writes EIO."""
        self._gate.forget()
        for timer in (self._timer, self._renewal):
            if timer is not None:
                timer.cancel()
        self._timer = self._renewal = None
        self._source.close()
        self._sink.close()
        if self.open:
            self.open = False
            os.close(self._slave)
            os.close(self._master)

    # -- output and modes, towards home ----------------------------------------------------------------------------------------------

    def _output(self, data: bytes) -> None:
        if self._renewal is not None:
            self._modes_changed()  # without EXTPROC nobody tells of a change, such as no echo from the prompt on that is in this data
        data = self._return + data
        self._return = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._late_modes is not None:
            self._late_after -= len(data)
            if self._late_after <= 0:
                self._send_late_modes()
        if data.endswith(b"\r") and self._modes.adds_cr:
            data, self._return = data[:-1], b"\r"
        if data:
            self._link.send(Kind.DATA, data)

    def _send_return(self) -> None:
        self._timer = None
        if self._return:
            self._link.send(Kind.DATA, self._return)
            self._return = b""

    def _status(self, status: int) -> None:
        if status & PKT_FLUSHREAD:
            self._link.send(Kind.FLUSH)
        if status & PKT_IOCTL:
            self._modes_changed()

    def _modes_changed(self) -> None:
        now = get_modes(self._master)
        if not has_extproc(self._master) and self._renewal is None:
            self._renewal = self._loop.call_later(RENEWAL, self._renew_extproc)
        if now == self._modes:
            return
        # The kernel tells of new modes before it gives the output that was written before them.  Home undoes the processing of what it gets
        # by its own modes, which works under less processing than was done, not under more: then the output goes first.
        more = now.adds_cr and not self._modes.adds_cr
        self._modes = now
        self._late_modes, self._late_after = now, QUEUE
        if not more:
            self._send_late_modes()

    def _renew_extproc(self) -> None:
        """The guest made its modes from nothing (`stty sane`).  Meanwhile the kernel told of no further change."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self.open and not has_extproc(self._master):
            set_modes(self._master, get_modes(self._master), extproc=True)
            self._modes_changed()

    def _send_late_modes(self) -> None:
        if self._late_modes is not None:
            self._link.send(Kind.TERMIOS, self._late_modes.pack())
            self._told += 1
            self._late_modes = None

    def _all_read(self) -> None:
        self._send_late_modes()
        if self._return and self._timer is None:
            self._timer = self._loop.call_later(NEWLINE_WAIT, self._send_return)

    def _take_all(self) -> None:
        if self.open:
            self._source.take_all(QUEUE)
        self._send_return()
        self._send_late_modes()

    # -- input, from home ------------------------------------------------------------------------------------------------------------

    def _frame(self, frame: Frame) -> None:
        if not self.open and frame.kind is not Kind.STOP:
            return
        if frame.kind in (Kind.DATA, Kind.EOF) and self._renewal is not None:
            self._renew_extproc()
        if frame.kind is Kind.DATA:
            self._sink.put(frame.payload)
            self._gate.delivered()
        elif frame.kind is Kind.EOF:
            self._sink.put(self._modes.eof)
            self._gate.delivered()
        elif frame.kind is Kind.CREDIT:
            self._source.allow(frame.number)
        elif frame.kind is Kind.WANT:
            self._gate.ask()
        elif frame.kind is Kind.TERMIOS:
            self._home_set(*Modes.unpack_heard(frame.payload))
        elif frame.kind is Kind.WINSIZE and len(frame.payload) == WINSIZE:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, frame.payload)  # SIGWINCH arises here
        elif frame.kind is Kind.BROKEN:
            self._hang_up()
        elif frame.kind is Kind.STOP:
            self._gate.forget()
            self._link.send(Kind.ACK, frame.payload)
        elif frame.kind is Kind.SYNC:
            self._take_all()
            self._return_input()  # home is about to stop the guest's deputy: the shell reads next
            self._link.send(Kind.ACK, frame.payload)
        else:
            raise FrameError(f"{frame.kind.name} from a terminal's home")

    def _home_set(self, modes: Modes, heard: int | None) -> None:
        if get_modes(self._master) != self._modes or self._late_modes is not None or heard not in (None, self._told):
            return  # the guest was faster; home will hear of its modes, or they are on their way, and they hold
        self._modes = modes
        set_modes(self._master, modes, extproc=True)

    def _grant(self, n: int) -> None:
        self._link.send(Kind.CREDIT, number(n))

    def _peek(self) -> None:
        self._link.send(Kind.PEEK, number(demand.SOME))

    def _return_input(self) -> None:
        rest = self._unread_input() + self._sink.take() if self.open else b""
        if rest:
            self._link.send(Kind.REST, rest)

    def _put_back(self) -> None:
        prefix, self._prefix = self._prefix, b""
        if prefix:
            self._sink.put(prefix)

    def _unread_input(self) -> bytes:
        data = b""
        while n := unread(self._slave):
            # A single VEOF character is read as nothing.
            data += os.read(self._slave, n) or self._modes.eof
        return data

    def _empty(self) -> bool:
        return self.open and not self._sink.pending and not unread(self._slave)
