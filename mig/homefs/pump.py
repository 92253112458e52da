"""The host's side of a mount while it runs: processes that carry whole FUSE messages between /dev/fuse and a connection, and know nothing.

Each connection has a process of its own (no shared interpreter lock, nothing else to wait for) and its own clone of the device.  A pump
never waits for room in its connection without reading answers meanwhile: the server may be waiting for us to take its answers.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket

from mig.homefs import protocol as p
from mig.kernel import libc

_GONE = (errno.ENODEV, errno.ECONNABORTED)
"""read(2) of /dev/fuse: unmounted; connection aborted."""
_UNWANTED = (errno.ENOENT, errno.EINVAL)
"""write(2): the request was interrupted, or the kernel caches no such node: nobody waits for this."""


class _Ended(Exception):
    """The mount or the connection is gone."""


def spawn(fuse: int, sock: socket.socket, down: int, *, notifications: bool = False) -> int:
    """Fork a pump between the device ``fuse`` and ``sock``; returns its pid.

    It ends with the connection, the mount, our death, or when ``down`` (an eventfd) is written, and writes ``down`` itself then.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        libc.pdeathsig()
        if os.getppid() == parent:
            _become_plain(fuse, sock.fileno(), down)
            (_carry_notifications if notifications else _carry)(fuse, sock, down)
            status = 0
    except (_Ended, OSError):
        status = 0  # the other side is gone, which is how pumps end
    finally:
        try:
            os.eventfd_write(down, 1)
        finally:
            os._exit(status)
    raise AssertionError("not reached")


def _become_plain(*keep: int) -> None:
    """Drop what was inherited: descriptors (a peer of another connection must see its end), signal handlers, the name."""
    signal.set_wakeup_fd(-1)
    for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(s, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    low = 3
    for fd in sorted(keep):
        if fd > low:
            os.closerange(low, fd)
        low = fd + 1
    libc.close_range(low)
    libc.set_name("mig-homefs-pump")


def _read_request(fuse: int, buffer: memoryview) -> int:
    """Bytes of the next request, 0 when another pump was quicker or the request was interrupted before it was read."""
    try:
        return os.readv(fuse, [buffer])
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError as e:
        if e.errno in _GONE:
            raise _Ended from e
        if e.errno == errno.ENOENT:
            return 0
        raise


def _write_answer(fuse: int, message: memoryview) -> None:
    try:
        os.write(fuse, message)
    except OSError as e:
        if e.errno in _GONE:
            raise _Ended from e
        if e.errno not in _UNWANTED:
            raise


class _Answers:
    """Cuts the stream of a non-blocking socket into messages."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(2 * p.MAX_MESSAGE))
        self._have = 0

    def take(self) -> list[memoryview]:
        """The messages that are complete now; valid until the next call."""
        self._rest()
        try:
            n = self._sock.recv_into(self._buffer[self._have :])
        except BlockingIOError:
            return []
        if not n:
            raise _Ended
        self._have += n
        out, pos = [], 0
        while self._have - pos >= p.OUT_HEADER.size:
            (length,) = p.U32.unpack_from(self._buffer, pos)
            if not p.OUT_HEADER.size <= length <= p.MAX_MESSAGE:
                raise _Ended  # not our protocol
            if self._have - pos < length:
                break
            out.append(self._buffer[pos : pos + length])
            pos += length
        self._used = pos
        return out

    _used = 0

    def _rest(self) -> None:
        if self._used:
            left = self._have - self._used
            self._buffer[:left] = self._buffer[self._used : self._have]
            self._have, self._used = left, 0


def _carry(fuse: int, sock: socket.socket, down: int) -> None:
    """Requests out, answers in, until an end."""
    os.set_blocking(fuse, False)
    sock.setblocking(False)
    poll = select.epoll()
    poll.register(fuse, select.EPOLLIN)
    poll.register(sock, select.EPOLLIN)
    poll.register(down, select.EPOLLIN)
    buffer, answers = memoryview(bytearray(p.MAX_MESSAGE)), _Answers(sock)
    unsent = buffer[:0]
    while True:
        for fd, events in poll.poll():
            if fd == down:
                raise _Ended
            if fd == fuse:
                if events & select.EPOLLERR:
                    raise _Ended  # unmounted or aborted
                if not unsent and (n := _read_request(fuse, buffer)):
                    unsent = _send(sock, buffer[:n])
                    if unsent:  # no further request until this one is out
                        poll.modify(fuse, 0)
                        poll.modify(sock, select.EPOLLIN | select.EPOLLOUT)
                continue
            if events & select.EPOLLOUT and unsent:
                unsent = _send(sock, unsent)
                if not unsent:
                    poll.modify(fuse, select.EPOLLIN)
                    poll.modify(sock, select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                for message in answers.take():
                    _write_answer(fuse, message)


def _send(sock: socket.socket, data: memoryview) -> memoryview:
    """What did not fit."""
    try:
        return data[sock.send(data) :]
    except BlockingIOError:
        return data


def _carry_notifications(fuse: int, sock: socket.socket, down: int) -> None:
    """Notifications in; the barrier is answered when the kernel has taken all before it.

    Never on a connection with answers: for the notification of a name the kernel takes the directory's lock, whose holder may be waiting
    for an answer queued behind it.
    """
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(down, select.POLLIN)
    answers = _Answers(sock)
    while True:
        for fd, _ in poll.poll():
            if fd == down:
                raise _Ended
            for message in answers.take():
                _, code, unique = p.OUT_HEADER.unpack_from(message)
                if code == p.NOTIFY_BARRIER and unique == 0:
                    sock.send(p.BARRIER_ACK)
                else:
                    _write_answer(fuse, message)
