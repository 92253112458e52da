"""The terminal of a cell: a pty with home's number, and who in its session has it."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from mig.cell import processes
from mig.cell.spec import CellError
from mig.model import External

TIOCSPTLCK = 0x40045431
TIOCGPTN = 0x80045430
TTY_GROUP = 5  # gid of `tty`, as devpts gives it


def open_numbered(root: str, wanted: int) -> int:
    """A pty master of the cell's devpts whose slave is /dev/pts/``wanted``; raises :class:`CellError` when that number is taken.

    The kernel gives the lowest free number, so those below are opened and let go.
    """
    spare: list[int] = []
    try:
        while True:
            master = os.open(f"{root}/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            spare.append(master)
            fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
            (number,) = struct.unpack("i", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
            if number == wanted:
                return spare.pop()
            if number > wanted:
                raise CellError("terminal", f"/dev/pts/{wanted} is taken in the cell")
    finally:
        for fd in spare:
            os.close(fd)


def open_slave(root: str, index: int) -> int:
    """The slave, without making it anybody's controlling terminal."""
    return os.open(f"{root}/dev/pts/{index}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def make(root: str, tty: External, uid: int) -> int:
    """A master for the terminal ``tty`` of a guest of ``uid``, set up as the one at home."""
    master = open_numbered(root, tty.index)
    os.chown(f"{root}/dev/pts/{tty.index}", uid, TTY_GROUP)
    if tty.termios:
        slave = open_slave(root, tty.index)
        termios.tcsetattr(slave, termios.TCSANOW, tty.termios)
        os.close(slave)
    if tty.winsize:
        fcntl.ioctl(master, termios.TIOCSWINSZ, tty.winsize)
    return master


class Foreground:
    """Gives the terminal to one process group of its session or another; lives in a process of that session.

    Without job control by us: the process must ignore SIGTTOU, as it is itself nearly always in the background.
    """

    def __init__(self, slave: int, guest: int, background: int) -> None:
        self._slave = slave
        self._guests = guest
        self._background = background

    def give(self, group: int) -> None:
        """The terminal goes to ``group``; raises ``OSError`` when there is no such group in the session."""
        os.tcsetpgrp(self._slave, group)
        if group != self._background:
            self._guests = group

    def switch(self, on: bool) -> None:
        """``on``: back to the group of the guest's that had it last; else to one that is not the guest's."""
        now = os.tcgetpgrp(self._slave)
        if on:
            if now == self._background:
                os.tcsetpgrp(self._slave, self._guests)
            return
        if not self._background:
            self._background = processes.stand_in()
        if now != self._background:
            self._guests = now
            os.tcsetpgrp(self._slave, self._background)
