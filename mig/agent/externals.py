"""Home's ends of everything that the guest shares with the world at home: opened once, re-pointed at every move."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable, Collection

from mig.agent.switchboard import Switchboard
from mig.channels.home_pipe import HomePipe, home_pipe
from mig.channels.home_terminal import HomeTerminal
from mig.errors import MoveFailed
from mig.kernel import libc
from mig.model import External, ProcessFacts

log = logging.getLogger(__name__)


class Gone(MoveFailed):
    """What was to be copied has been closed since it was seen: looking again helps."""


class Externals:
    """All proxied pipes and the terminal of the process ``pid``.

    ``on_closed(holders)``: the guest has closed its last descriptor of an external; ``holders`` are the [pid, fd] pairs at home.
    ``on_foreground(bool)``: the process group of the deputy has got, or lost, the terminal.
    """

    def __init__(self, pid: int, on_closed: Callable[[list[list[int]]], None], on_foreground: Callable[[bool], None]) -> None:
        self.pid, self._on_closed, self._on_foreground = pid, on_closed, on_foreground
        self._ends: dict[int, HomePipe | HomeTerminal] = {}
        self._files: dict[int, int] = {}  # index of a shared file -> our copy of its descriptor

    def open(self, facts: ProcessFacts) -> None:
        """Take copies of the descriptors; what an earlier attempt left is closed.  Raises :class:`Gone`, :class:`MoveFailed`."""
        self.close()
        try:
            for e in facts.externals:
                self._ends[e.id] = self._open(e)
            for i, f in enumerate(facts.shared_files):
                self._files[i] = libc.pidfd_getfd(f.pid, f.fd)
        except OSError as e:
            self.close()
            kind = Gone if e.errno in _CLOSED else MoveFailed
            hint = "it may have closed it just now: try again"
            raise kind(f"a descriptor that it shares could not be copied: {e}", hint=hint) from e

    def _open(self, e: External) -> HomePipe | HomeTerminal:
        if e.kind == "tty":
            # a process may hold no descriptor of its controlling terminal
            fd = _copy(e.holders) if e.holders else os.open(f"/dev/pts/{e.index}", os.O_RDWR | os.O_NOCTTY)
            try:
                return HomeTerminal(fd, self.pid, on_foreground=self._on_foreground, on_lost=_lost)
            finally:
                os.close(fd)
        return home_pipe(_copy(e.holders, e.key), e.dir, shared=e.shared, on_closed=lambda: self._on_closed(e.holders), on_lost=_lost)

    def numbers(self) -> dict[int, int]:
        """Our descriptors of pipes, which a cell at home takes copies of."""
        return {i: p.fd for i, p in self._ends.items() if isinstance(p, HomePipe) and p.fd >= 0}

    def attach(self, epoch: int, board: Switchboard, proxied: Collection[int]) -> None:
        """The guest runs in another cell: talk to its keeper, or stand back where the guest has the real descriptor."""
        for i, end in self._ends.items():
            sock = board.take(epoch, i)
            if i in proxied and sock is not None:
                end.attach(sock)
                continue
            if isinstance(end, HomePipe):
                end.detach()
            if sock is not None:
                sock.close()

    async def hold(self) -> None:
        """Pass no more input on; returns when all that was is with the keeper."""
        await asyncio.gather(*(end.hold() for end in self._ends.values()))

    def resume(self) -> None:
        """Input flows again to the same cell."""
        for end in self._ends.values():
            end.resume()

    def busy(self) -> list[int]:
        """Externals with bytes in our memory: the guest must not be given the real descriptor beside them."""
        return [i for i, end in self._ends.items() if isinstance(end, HomePipe) and not end.idle]

    @property
    def terminal(self) -> HomeTerminal | None:
        """The terminal among them."""
        return next((end for end in self._ends.values() if isinstance(end, HomeTerminal)), None)

    async def finished(self) -> None:
        """The guest has ended: returns when its output has reached the descriptors at home."""
        await asyncio.gather(*(end.finished() for end in self._ends.values()))

    def set_positions(self, positions: dict[int, int]) -> None:
        """Where the guest left off in files whose description it shared with processes at home: they go on from there."""
        for i, at in positions.items():
            if i in self._files:
                with contextlib.suppress(OSError):
                    os.lseek(self._files[i], at, os.SEEK_SET)

    def close(self) -> None:
        """Close everything; idempotent."""
        for end in self._ends.values():
            end.close()
        for fd in self._files.values():
            os.close(fd)
        self._ends.clear()
        self._files.clear()


_CLOSED = (errno.ESRCH, errno.EBADF)


def _copy(holders: list[list[int]], key: str = "") -> int:
    """A duplicate of what the first of the [pid, fd] pairs has that is still there: a short-lived child may have ended meanwhile.

    ``key``: what it must be, as in /proc/PID/fd.  Raises ``OSError``.
    """
    for pid, fd in holders:
        try:
            copy = libc.pidfd_getfd(pid, fd)
        except OSError as e:
            if e.errno not in _CLOSED:
                raise
            continue
        if not key or os.readlink(f"/proc/self/fd/{copy}") == key:
            return copy
        os.close(copy)  # the number has been used again
    raise OSError(errno.EBADF, f"{key or 'its terminal'} has been closed")


def _lost(e: Exception) -> None:
    log.warning("a channel to the keeper is gone: %s", e)
