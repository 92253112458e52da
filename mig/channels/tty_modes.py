"""What of a terminal's settings travels between home and the cell, and the few ioctls of a pseudo-terminal's master."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from dataclasses import dataclass, replace

from mig.channels.frames import Frame, FrameError, Kind
from mig.channels.relay import reopen

TCGETS, TCSETS, TCFLSH = 0x5401, 0x5402, 0x540B
TIOCPKT, TIOCSIG, TIOCGPTPEER, TIOCGDEV = 0x5420, 0x40045436, 0x5441, 0x80045432
PKT_DATA, PKT_FLUSHREAD, PKT_IOCTL = 0x00, 0x01, 0x40
"""First byte of a read from a master in packet mode; others (output stopped, started, flushed) concern nobody here."""
EXTPROC = 0o200000
"""c_lflag: echo, editing and signals are done elsewhere (by home's line discipline).  The kernel then takes a single VEOF character as the
end of file, and reports every change of the modes to the master."""
_TERMIOS = struct.Struct("<4IB19s")  # the kernel's struct termios of x86-64, arm64 and most others
_WIRE = struct.Struct("<3IB19s")


@dataclass(frozen=True)
class Modes:
    """struct termios without c_cflag, which describes a line that only one side has, and without EXTPROC, which is ours."""

    iflag: int
    oflag: int
    lflag: int
    line: int
    cc: bytes

    @staticmethod
    def unpack(b: bytes) -> Modes:
        """From the wire; raises :class:`FrameError` on a wrong length."""
        if len(b) != _WIRE.size:
            raise FrameError(f"{len(b)} bytes of terminal modes")
        return Modes(*_WIRE.unpack(b))

    @staticmethod
    def unpack_heard(b: bytes) -> tuple[Modes, int | None]:
        """From home: modes, and how many of the guest's changes home had heard of when it sent them (None: it does not say)."""
        modes, heard = b[: _WIRE.size], b[_WIRE.size :]
        return Modes.unpack(modes), Frame(Kind.TERMIOS, heard).number if heard else None

    def pack(self) -> bytes:
        """For the wire."""
        return _WIRE.pack(self.iflag, self.oflag, self.lflag, self.line, self.cc)

    @property
    def canonical(self) -> bool:
        """Input comes by lines."""
        return bool(self.lflag & termios.ICANON)

    @property
    def adds_cr(self) -> bool:
        """A newline is written as carriage return and newline."""
        return bool(self.oflag & termios.OPOST and self.oflag & termios.ONLCR)

    @property
    def eof(self) -> bytes:
        """The end-of-file character."""
        return self.cc[termios.VEOF : termios.VEOF + 1]


def get_modes(fd: int) -> Modes:
    """The modes of a terminal, or of the slave of a master."""
    iflag, oflag, _, lflag, line, cc = _TERMIOS.unpack(fcntl.ioctl(fd, TCGETS, bytes(_TERMIOS.size)))
    return Modes(iflag, oflag, lflag & ~EXTPROC, line, cc)


def set_modes(fd: int, modes: Modes, *, extproc: bool) -> None:
    """Set the modes of a terminal, or of the slave of a master, at once; the rest of its settings stays."""
    _, _, cflag, _, _, _ = _TERMIOS.unpack(fcntl.ioctl(fd, TCGETS, bytes(_TERMIOS.size)))
    lflag = modes.lflag | (EXTPROC if extproc else 0)
    fcntl.ioctl(fd, TCSETS, _TERMIOS.pack(modes.iflag, modes.oflag, cflag, lflag, modes.line, modes.cc))


def has_extproc(fd: int) -> bool:
    """Whether EXTPROC is set."""
    return bool(_TERMIOS.unpack(fcntl.ioctl(fd, TCGETS, bytes(_TERMIOS.size)))[3] & EXTPROC)


def without_echo(modes: Modes) -> Modes:
    """The same, but what comes in is not echoed."""
    return replace(modes, lflag=modes.lflag & ~(termios.ECHO | termios.ECHONL))


def get_winsize(fd: int) -> bytes:
    """struct winsize."""
    return fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))


def open_terminal(fd: int) -> int:
    """A new description, non-blocking, of the terminal behind ``fd``; /dev/tty, which means another one to each process, is seen through.

    Raises ``OSError``: ``EIO`` when it was hung up, ``ENOENT`` for a pseudo-terminal of another mount namespace.
    """
    if os.fstat(fd).st_rdev != os.makedev(5, 0):
        return reopen(fd, os.O_RDWR)
    device: int = struct.unpack("I", fcntl.ioctl(fd, TIOCGDEV, bytes(4)))[0]
    number = os.minor(device) + (os.major(device) - 136) * 256  # the majors from 136 are those of pseudo-terminals
    return os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def unread(fd: int) -> int:
    """Bytes that a read would find in a pipe or a slave."""
    n: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    return n


def packet_mode(master: int) -> None:
    """Reads of ``master`` begin with a status byte from now on."""
    fcntl.ioctl(master, TIOCPKT, struct.pack("i", 1))


def open_slave(master: int) -> int:
    """The slave of ``master``, non-blocking, nobody's controlling terminal; without a path, as it may lie in another mount namespace."""
    return fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)


def strip_cr(data: bytes) -> bytes:
    """Undo what a terminal with ONLCR did: one carriage return before each newline goes."""
    return data.replace(b"\r\n", b"\n")


def stripped_length(data: bytes, written: int) -> int:
    """How many bytes of ``data`` the first ``written`` bytes of ``strip_cr(data)`` stand for."""
    if written == len(data):
        return written
    at = 0
    for _ in range(written):
        at += 2 if data.startswith(b"\r\n", at) else 1
    return at
