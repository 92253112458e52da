"""Input for a guest that never waits for it: shown to the guest while home still has it, and taken from home as the guest reads.

A guest that only polls (``poll(..., 0)`` between computing) is never seen waiting, so that input that others at home read too is never
granted to it.  After a while home duplicates what its pipe holds with tee(2), which consumes nothing, and the cell writes that into the
guest's pipe: the *preview*.  The cell looks how much of it is unread, and home takes from its pipe what the guest has read.  What is unread
when the guest moves or ends is dropped: it is still in home's pipe.

What stays racy: the guest and another reader at home can both read the same bytes, when they do so within the time that a look
(:data:`FIRST_LOOK` to :data:`LAST_LOOK` here, :data:`HOME_LOOK` at home) and a frame on the connection take.  Another reader is noticed by
what the pipe begins with: it is not when the pipe repeats itself exactly there (`yes`), and then nobody could tell either.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from mig.channels.relay import reopen
from mig.channels.tty_modes import unread
from mig.kernel import libc

SIZE = 4096
"""Bytes of one preview: what fits into any empty pipe."""
PATIENCE, EAGER = 0.3, 0.03
"""Seconds that home's question stays unanswered before a preview is asked for: EAGER when the guest has read the preview before it."""
FIRST_LOOK, LAST_LOOK = 0.02, 0.1
"""Seconds between the cell's looks at a preview that is unread; the longer the longer the guest leaves it alone."""
HOME_LOOK = (0.1, 0.5)
"""Seconds between home's looks whether another reader took what was previewed: first, and after a while."""


class CellPreview:
    """The guest's side.  ``consumed(n)``: the guest has read ``n`` bytes more of the preview."""

    def __init__(self, consumed: Callable[[int], None]) -> None:
        self._consumed = consumed
        self._fd = -1
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def shown(self) -> bool:
        """There is a preview that the guest has, as far as we know, not read in full."""
        return self._left > 0

    def show(self, fd: int, n: int) -> None:
        """``n`` bytes were written into the empty pipe whose writing end is ``fd``."""
        self._fd, self._left = fd, n
        self._timer = self._loop.call_later(FIRST_LOOK, self._look, FIRST_LOOK)

    def settle(self, left: int | None = None) -> None:
        """The guest has ended, or ``left`` unread bytes were taken out of its pipe: tell what it has read; the rest is dropped."""
        self._account(left)
        self._left = 0
        self.forget()

    def forget(self) -> None:
        """Look no more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _account(self, left: int | None = None) -> bool:
        if not self._left:
            return False
        if left is None:
            left = unread(self._fd)
        taken, self._left = self._left - left, left
        if taken > 0:
            self._consumed(taken)
        return taken > 0

    def _look(self, pause: float) -> None:
        self._timer = None
        pause = FIRST_LOOK if self._account() else min(pause * 1.5, LAST_LOOK)
        if self._left:
            self._timer = self._loop.call_later(pause, self._look, pause)


class HomePreview:
    """Home's side of the pipe behind ``fd``, a non-blocking description of our own that stays the caller's.

    ``on_void()``: called once for a preview, when another reader took some of it or of what the guest has read of it.
    """

    def __init__(self, fd: int, on_void: Callable[[], None]) -> None:
        self._fd, self._on_void = fd, on_void
        self._pipe: tuple[int, int] | None = None
        self._ahead = b""  # what the guest has before it, and home's pipe too
        self._void = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def shown(self) -> bool:
        """The guest has a preview."""
        return bool(self._ahead)

    def take(self, n: int) -> bytes | None:
        """A new preview of up to ``n`` bytes; None: nothing there now; empty: the end of the file."""
        self.forget()
        data = self._peek(min(n, SIZE))
        if data:
            self._ahead = data
            self._timer = self._loop.call_later(HOME_LOOK[0], self._look, HOME_LOOK[0])
        return data

    def consumed(self, n: int) -> None:
        """The guest has read ``n`` bytes of it: they are taken out of home's pipe, unless another reader has them."""
        read, self._ahead = self._ahead[:n], self._ahead[n:]
        if self._void or not read:
            return
        if self._peek(len(read)) != read:
            self._withdraw()
            return
        while n > 0:
            try:
                data = os.read(self._fd, n)
            except BlockingIOError:
                data = b""
            if not data:  # taken by another reader this instant
                return
            n -= len(data)

    def forget(self) -> None:
        """The guest has it no more; idempotent."""
        self._ahead, self._void = b"", False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """As :meth:`forget`, for good."""
        self.forget()
        if self._pipe is not None:
            for fd in self._pipe:
                os.close(fd)
            self._pipe = None

    def _withdraw(self) -> None:
        if not self._void:
            self._void = True
            self._on_void()

    def _look(self, pause: float) -> None:
        self._timer = None
        if not self._ahead or self._void:
            return
        if self._peek(len(self._ahead)) != self._ahead:
            self._withdraw()
            return
        pause = min(pause * 1.5, HOME_LOOK[1])
        self._timer = self._loop.call_later(pause, self._look, pause)

    def _peek(self, n: int) -> bytes | None:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        r, w = self._pipe
        try:
            duplicated = libc.tee(self._fd, w, n, libc.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return None
        return os.read(r, duplicated) if duplicated else b""


def empty_pipe(reference: int) -> bytes:
    """Read all that is in a pipe of which ``reference`` is any descriptor and which has a writer or none."""
    reader = reopen(reference, os.O_RDONLY)
    data = bytearray()
    try:
        while piece := os.read(reader, 64 << 10):
            data += piece
    except BlockingIOError:
        pass  # empty, and we are its writer
    finally:
        os.close(reader)
    return bytes(data)
