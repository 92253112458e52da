"""The keeper's ends of everything that its guest shares with home: which there are, what the guest is given, and their life.

On another node every external is proxied.  At home the guest gets home's real pipe ends, except where bytes are still in our hands: input
that was taken out of the old cell, or output that a slow reader at home has not taken yet; those pipes stay proxied, so that order is
kept.  The terminal is always proxied: it has one session, and that is home's.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Collection

from mig.cell.guest import Guest
from mig.cell.spec import Given
from mig.channels.cell_pipe import CellPipe, cell_pipe
from mig.channels.cell_terminal import CellTerminal
from mig.kernel import libc
from mig.model import External

log = logging.getLogger(__name__)


class Proxies:
    """All externals of one cell.  Made before the cell; live once the guest runs."""

    def __init__(self, externals: list[External], mode: str) -> None:
        self.externals, self.mode = externals, mode
        self.proxied = {e.id for e in externals}
        self.prefixes: dict[int, bytes] = {}
        self._socks: dict[int, socket.socket] = {}
        self._ours: dict[int, int] = {}  # our end of a pipe of the cell
        self._real: dict[int, int] = {}  # home's own end (mode home)
        self._home_keys: dict[int, str] = {}
        self._keys: dict[int, str] = {}
        self._live: dict[int, CellPipe | CellTerminal] = {}

    def connected(self, e: External, sock: socket.socket) -> None:
        """The connection to the home agent for ``e``."""
        self._socks[e.id] = sock

    def take_real_ends(self, agent_pid: int, fds: dict[int, int]) -> None:
        """At home: copies of the real pipe ends, which the agent holds."""
        if self.mode == "home":
            for e in self.externals:
                if e.kind == "pipe":
                    fd = self._real[e.id] = libc.pidfd_getfd(agent_pid, fds[e.id])
                    self._home_keys[e.id] = f"pipe:[{os.fstat(fd).st_ino}]"

    def given(self) -> list[Given]:
        """What the guest gets; the descriptors are the receiver's."""
        out = []
        for e in self.externals:
            if e.kind == "tty":
                out.append(Given(e))
                self._keys[e.id] = "tty"
                continue
            r, w = os.pipe2(os.O_CLOEXEC)
            self._ours[e.id], theirs = (w, r) if e.dir == "r" else (r, w)
            self._keys[e.id] = f"pipe:[{os.fstat(theirs).st_ino}]"
            if self.mode == "home":
                out.append(Given(e, self._real.pop(e.id), theirs))
            else:
                out.append(Given(e, theirs))
        return out

    def settle(self, rest: dict[int, bytes], busy: Collection[int]) -> set[int]:
        """Before the restore: ``rest``, input that comes back into the pipes; ``busy``, outputs with bytes in the agent's memory.

        Returns the ids of the pipes at home that must be proxied after all.
        """
        self.prefixes = {i: b for i, b in rest.items() if b}
        if self.mode != "home":
            return set()
        alternatives = set()
        for e in self.externals:
            if e.kind != "pipe":
                continue
            if e.id in self.prefixes or e.id in busy:
                alternatives.add(e.id)
                continue
            self.proxied.discard(e.id)
            self._keys[e.id] = self._home_keys[e.id]
            self._socks.pop(e.id).close()
            os.close(self._ours.pop(e.id))
        return alternatives

    def start(self, guest: Guest, tty_master: int | None) -> None:
        """The guest runs: pass data."""
        for e in self.externals:
            if e.id not in self.proxied:
                continue
            sock = self._socks.pop(e.id)
            if e.kind == "pipe":
                end = self._ours.pop(e.id)
                prefix = self.prefixes.pop(e.id, b"")
                self._live[e.id] = cell_pipe(end, sock, e.dir, prefix=prefix, shared=e.shared, pids=guest.pids, on_lost=_lost)
            else:
                assert tty_master is not None
                self._live[e.id] = CellTerminal(tty_master, sock, prefix=self.prefixes.pop(e.id, b""), pids=guest.pids, on_lost=_lost)
        for p in self._live.values():
            p.start()

    def keys(self) -> dict[str, int]:
        """The pipes and the terminal of the guest as /proc names them in the cell, with their ids."""
        return {k: i for i, k in self._keys.items()}

    async def drain(self) -> dict[int, bytes]:
        """The guest stands still: its output to the agent; returns the input that it has not read."""
        rest = {}
        for i, p in self._live.items():
            await p.drain()
            if left := p.rest():
                rest[i] = left
        return rest

    def resume(self) -> None:
        """The move was given up: unread input back, data flows again."""
        for p in self._live.values():
            p.resume()

    async def finish(self) -> None:
        """The guest has ended: all its output reaches the agent."""
        for p in self._live.values():
            try:
                await p.finish()
            except ConnectionError as e:
                log.warning("output may be lost: %s", e)

    def close(self) -> None:
        """Close everything; idempotent."""
        for p in self._live.values():
            p.close()
        for s in self._socks.values():
            s.close()
        for fd in [*self._ours.values(), *self._real.values()]:
            os.close(fd)
        self._socks.clear()
        self._ours.clear()
        self._real.clear()


def _lost(e: Exception) -> None:
    log.warning("a channel to the home agent is gone: %s", e)
