"""The home agent's end of the guest's terminal.

Home's line discipline stays the authority: it echoes, edits lines, makes signals out of Ctrl-C, for the guest as for the shell.  What
it has ready is read only while the guest is in the foreground and waits for input, so that type-ahead stays for whom it was typed.

A terminal cannot be looked into without reading it.  A guest that polls without ever waiting is therefore given a line, or what there is,
after a second (PEEK), unless another process of its job at home could have been meant (`guest | less`).  What it leaves unread comes back
(REST) when it stops or ends.  What stays racy: a guest that loses the terminal and runs on keeps an unread line; and such a line is in the
guest's hands while its host or the link may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import termios
from collections.abc import Callable, Iterator

from mig.channels.frames import Frame, FrameError, Kind, number
from mig.channels.relay import Allowance, DemandedSource, Link, Sink
from mig.channels.tty_modes import (
    TCFLSH,
    Modes,
    get_modes,
    get_winsize,
    has_extproc,
    open_terminal,
    set_modes,
    strip_cr,
    stripped_length,
    without_echo,
)
from mig.kernel import procfs

WINDOW = 16 << 10
"""Bytes of output on their way to the terminal: what still appears after Ctrl-C."""
POLL = 0.1
"""Seconds between looks at who has the terminal, at its size and its modes (nobody tells: the agent is not of this session)."""


def _nothing(*_: object) -> None:
    """A callback that nobody asked for."""


class TerminalSink(Sink):
    """Writes bytes that one terminal (the cell's) has processed already through another (home's), so that they come out as given.

    Only ONLCR matters.  Where home has it on, the carriage return before each newline is left to home.
    """

    def write_some(self, data: bytes) -> int:
        """As :meth:`Sink.write_some`."""
        if not get_modes(self.fd).adds_cr:
            return os.write(self.fd, data)
        if len(data) > 1 and data.endswith(b"\r"):
            data = data[:-1]  # its newline may stand right behind
        return stripped_length(data, os.write(self.fd, strip_cr(data)))


class HomeTerminal:
    """The guest's terminal at home.

    ``fd``: any copy of a descriptor of the guest's for it; stays the caller's.  ``deputy``: pid of the guest at home.
    ``on_foreground(bool)``: the guest's process group got or lost the terminal; called for the first time by the first :meth:`attach`.
    ``on_hangup()``: the terminal is gone.  ``on_lost(error)``: as for :class:`mig.channels.home_pipe.HomePipe`.
    Raises ``OSError`` (``EIO``) when the terminal is hung up already.
    """

    def __init__(
        self,
        fd: int,
        deputy: int,
        *,
        on_foreground: Callable[[bool], None] = _nothing,
        on_hangup: Callable[[], None] = _nothing,
        on_lost: Callable[[Exception], None] = _nothing,
    ) -> None:
        self._tty = open_terminal(fd)
        self._device = os.fstat(self._tty).st_rdev
        self._deputy = deputy
        self._on_foreground, self._on_hangup, self._on_lost = on_foreground, on_hangup, on_lost
        self._source = DemandedSource(os.dup(self._tty), lambda: self._send(Kind.WANT), self._data, self._end)
        self._allowance = Allowance(WINDOW, lambda n: self._send(Kind.CREDIT, number(n)))
        self._sink = TerminalSink(os.dup(self._tty), self._written, self._hangup)
        self._link: Link | None = None
        self._next: list[socket.socket] = []
        self._over, self._held = True, False
        self._gone = asyncio.Event()
        self._modes = get_modes(self._tty)  # as both sides know them
        self._late_modes: Modes | None = None
        self._heard = 0  # frames of modes from the present cell
        self._winsize = get_winsize(self._tty)
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.foreground: bool | None = None
        """Whether the guest has the terminal; None before the first look."""
        self.hung_up = False

    # -- epochs ------------------------------------------------------------------------------------------------------------------

    def attach(self, sock: socket.socket) -> None:
        """The guest runs in a new cell, whose keeper is at the other end of ``sock``; undoes :meth:`hold`.

        Nothing passes before the connection of the cell before has said STOP.
        """
        self._next.append(sock)
        self._switch()

    async def hold(self) -> None:
        """Pass no more input on; when it returns, all that was passed on has reached the keeper.  Raises ``ConnectionError``."""
        self._held = True
        self._source.pause()
        if self._link is not None:
            await self._link.request(Kind.STOP)

    def resume(self) -> None:
        """The move was given up: go on with the same cell."""
        self._held = False
        self._let_input()

    async def sync(self) -> None:
        """All that the guest wrote and set until now has reached the terminal, but for output that the user has stopped (Ctrl-S).

        To be awaited before the deputy stops (Ctrl-Z): then the shell takes the terminal and sets modes of its own.
        Raises ``ConnectionError``.
        """
        if self._link is not None and self._link.open:
            await self._link.request(Kind.SYNC)
        self._set_late_modes()

    async def finished(self) -> None:
        """The guest has ended: return when all that it wrote has reached the terminal."""
        if self._link is not None:
            await self._gone.wait()
        await self._sink.flushed()
        self._set_late_modes()

    def close(self) -> None:
        """Close everything, at once; idempotent.  The terminal's modes stay as the guest left them, as at home."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._link is not None:
            self._link.close()
            self._link = None
        for s in self._next:
            s.close()
        self._next.clear()
        self._source.close()
        self._sink.close()
        if self._tty >= 0:
            os.close(self._tty)
            self._tty = -1

    def _switch(self) -> None:
        if not self._over or not self._next:
            return
        if self._link is not None:
            self._link.close()
        self._over = self._held = False
        self._heard = 0
        self._gone.clear()
        self._link = Link(self._next.pop(0), self._frame, self._lost)
        self._link.start()
        if self.hung_up:
            self._send(Kind.BROKEN)
            return
        self._allowance.open(self._sink.pending)
        self._winsize, self._modes = get_winsize(self._tty), get_modes(self._tty)
        self._send(Kind.WINSIZE, self._winsize)
        self._send_modes()
        self.check_foreground()
        self._let_input()
        if self._timer is None:
            self._timer = self._loop.call_later(POLL, self._look)

    def _lost(self, e: Exception) -> None:
        self._over = True
        self._source.pause()
        if not self._gone.is_set():
            self._gone.set()
            self._on_lost(e)
        self._switch()

    def _send(self, kind: Kind, payload: bytes = b"") -> None:
        if self._link is not None:
            self._link.send(kind, payload)

    # -- who has the terminal ------------------------------------------------------------------------------------------------------

    def check_foreground(self) -> bool:
        """Look now, call ``on_foreground`` on a change, and tell.

        To be called before a SIGCONT is sent on: a guest that reads before its cell knows would be stopped again (SIGTTIN).
        """
        now = self._has_terminal()
        if now != self.foreground:
            self.foreground = now
            if now:
                self._compare()
            self._let_input()
            self._on_foreground(now)
        return now

    def winsize_changed(self) -> None:
        """The deputy got SIGWINCH, which must not be sent on: the new size makes one in the cell."""
        if not self.hung_up:
            self._compare_winsize()

    def _is_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._tty, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _has_terminal(self) -> bool:
        try:
            stat = procfs.stat(self._deputy)
        except ProcessLookupError:
            return False
        # It matters only for a controlling terminal; another one may be read by any process.
        return stat.tty_nr != self._device or stat.tpgid == stat.pgid

    def _others_could_read(self) -> bool:
        """Another process of the deputy's group has the terminal too.  Its ancestors are not counted: they wait for its end."""
        parents: dict[int, int] = {}
        group = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(ProcessLookupError):
                    stat = procfs.stat(int(name))
                    parents[stat.pid] = stat.ppid
                    if stat.tty_nr == self._device and stat.pgid == stat.tpgid and stat.state not in "ZX":
                        group.add(stat.pid)
        at = self._deputy
        while at in parents:
            group.discard(at)
            at = parents[at]
        return bool(group)

    def _let_input(self) -> None:
        if self.foreground and not self._held and not self.hung_up and self._link is not None and self._link.open:
            self._source.resume()
        else:
            self._source.pause()

    def _look(self) -> None:
        self._timer = self._loop.call_later(POLL, self._look)
        if self.hung_up:
            return
        if self._is_hung_up():
            self._hangup()
            return
        if self.check_foreground():
            self._compare()
        self._compare_winsize()

    @contextlib.contextmanager
    def _unless_hung_up(self) -> Iterator[None]:
        """Every call on a terminal that is gone gives EIO."""
        try:
            yield
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            self._hangup()

    def _compare(self) -> None:
        """Somebody else at home (the shell, stty) may have set other modes.  In the background they are the shell's affair."""
        with self._unless_hung_up():
            now = get_modes(self._tty)
            if now != self._modes and self._late_modes is None:
                self._modes = now
                self._send_modes()

    def _send_modes(self) -> None:
        self._send(Kind.TERMIOS, self._modes.pack() + number(self._heard))

    def _compare_winsize(self) -> None:
        with self._unless_hung_up():
            now = get_winsize(self._tty)
            if now != self._winsize:
                self._winsize = now
                self._send(Kind.WINSIZE, now)

    def _hangup(self) -> None:
        if self.hung_up:
            return
        self.hung_up = True
        self._source.close()
        self._sink.close()
        self._send(Kind.BROKEN)
        self._on_hangup()

    # -- data ----------------------------------------------------------------------------------------------------------------------

    def _data(self, data: bytes) -> None:
        self._send(Kind.DATA, data)

    def _end(self) -> None:
        if self._is_hung_up():
            self._hangup()
            return
        with self._unless_hung_up():
            if get_modes(self._tty).canonical:  # else VMIN is 0 and somebody else was faster
                self._send(Kind.EOF)

    def _written(self, n: int) -> None:
        self._allowance.written(n)
        if not self._sink.pending:
            self._set_late_modes()

    def _frame(self, frame: Frame) -> None:
        if frame.kind is Kind.DATA:
            self._over = False
            self._sink.put(frame.payload)
        elif frame.kind is Kind.CREDIT:
            if self.check_foreground():
                self._source.grant(frame.number)
        elif frame.kind is Kind.PEEK:
            if self.check_foreground() and self._source.asked:
                if self._others_could_read():
                    self._send(Kind.WANT)  # ask for longer
                else:
                    self._source.grant(frame.number)
        elif frame.kind is Kind.TERMIOS:
            self._heard += 1
            self._guest_set(Modes.unpack(frame.payload))
        elif frame.kind is Kind.FLUSH:
            if not self.hung_up and self.check_foreground():
                with self._unless_hung_up():
                    fcntl.ioctl(self._tty, TCFLSH, termios.TCIFLUSH)
        elif frame.kind is Kind.REST:
            if not self.hung_up and self.check_foreground():
                with self._unless_hung_up():
                    self._give_back(frame.payload)
        elif frame.kind in (Kind.STOP, Kind.FIN):
            self._over = True
            if frame.kind is Kind.FIN:
                self._gone.set()
            self._send(Kind.ACK, frame.payload)
            self._switch()
        else:
            raise FrameError(f"{frame.kind.name} from a terminal's cell")

    def _guest_set(self, modes: Modes) -> None:
        """The guest changed the modes, after what it wrote before and before what it writes next."""
        if self.hung_up or not self.check_foreground():
            return  # the shell has the terminal by now
        self._late_modes = modes
        # Newlines waiting to be written were processed, or not, by the modes before.  They come out right under less processing, not more.
        if not self._sink.pending or not modes.adds_cr:
            self._set_late_modes()

    def _set_late_modes(self) -> None:
        modes, self._late_modes = self._late_modes, None
        if modes is not None and not self.hung_up:
            with self._unless_hung_up():
                self._modes = modes
                set_modes(self._tty, modes, extproc=has_extproc(self._tty))

    def _give_back(self, unread: bytes) -> None:
        """The guest ended without reading this: it goes back into the terminal's queue, before what was typed since, for the shell."""
        self._set_late_modes()
        modes = get_modes(self._tty)
        set_modes(self._tty, without_echo(modes), extproc=has_extproc(self._tty))  # it was echoed once
        try:
            while len(unread) < WINDOW and (data := os.read(self._tty, WINDOW)):
                unread += data
        except BlockingIOError:
            pass  # all taken
        try:
            for byte in unread:
                fcntl.ioctl(self._tty, termios.TIOCSTI, bytes((byte,)))
        except PermissionError:
            pass  # an agent without CAP_SYS_ADMIN: what was typed ahead is lost
        set_modes(self._tty, modes, extproc=has_extproc(self._tty))
