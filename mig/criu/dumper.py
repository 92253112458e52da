"""The dump helper: a process of its own, started before the freeze, that asks CRIU for one dump.

CRIU's RPC blocks, and inside a cell the request must come from the cell's own pid and mount namespace; so neither the agent nor the
keeper does it.  The helper is ready (CRIU started and linked, everything imported) when :meth:`Dumper.start` returns.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Self

from mig import spawn, wire
from mig.criu.log import CriuError


@dataclass
class DumpResult:
    """What a dump took (milliseconds by part: ``hide``, ``criu``, ``rest``), how many bytes of memory its images hold, and what was hidden:
    the ranges by pid, as in the images."""

    ms: dict[str, float] = field(default_factory=dict)
    pages_bytes: int = 0
    hidden: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)


class Dumper:
    """One dump helper and its CRIU worker; good for one dump.  It is killed with the process that started it."""

    def __init__(self, process: spawn.Process, sock: socket.socket) -> None:
        self._process = process
        self._sock = sock

    @classmethod
    async def start(cls, img_fd: int, *, cell_init: int | None = None, base: str | None = None, hides: bool = False) -> Self:
        """Start the helper; images will go to the directory ``img_fd``.  ``hides``: it may be asked to leave memory out.

        ``cell_init`` is the pid (here) of a cell's first process: the helper then works in that cell's ipc, uts, pid and mount
        namespaces, pids are the cell's, and CRIU is ``base`` as seen there (default: ``/.cell/criu`` where the cell has it, else the
        same path as outside, for a cell on this machine's own root).  Call it from the main thread: the helper dies with the thread
        that started it.  Raises :class:`CriuError`.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        task = {"img_fd": img_fd, "sock": theirs.fileno(), "parent": os.getpid(), "cell_init": cell_init, "base": base, "hides": hides}
        with theirs:
            process = spawn.start("mig.criu.dump_helper", json.dumps(task), fds=[theirs.fileno(), img_fd])
        dumper = cls(process, ours)
        try:
            await dumper._answer()
        except BaseException:
            await dumper.close()
            raise
        return dumper

    async def look(self, pids: list[int]) -> int:
        """Before the freeze of a dump that hides memory: what the helper reads now of these processes it need not read then.

        They are numbered as for :meth:`dump`.  Returns the bytes that can be hidden.
        """
        await wire.asend(self._sock, op="look", pids=pids)
        return int((await self._answer())["bytes"])

    async def dump(self, pid: int, freeze_cgroup: str, *, memory: dict[str, Any] | None = None) -> DumpResult:
        """Dump the tree under ``pid``, which is frozen in the cgroup-v2 directory ``freeze_cgroup`` and stays so.

        In a cell both are as seen there (the cell has its guest's cgroup at ``/.cell/cg``).  ``memory`` says what the images are to
        hold: ``{"mode": "full"}``, everything; ``{"mode": "hidden", "pids": […]}``, not the big private memory
        of these.  Raises :class:`CriuError`; then the tree may have run for a moment.
        """
        await wire.asend(self._sock, op="dump", pid=pid, freeze_cgroup=freeze_cgroup, memory=memory or {"mode": "full"})
        m = await self._answer()
        hidden = [(int(p), [(int(a), int(b)) for a, b in ranges]) for p, ranges in m["hidden"]]
        return DumpResult(ms=dict(m["ms"]), pages_bytes=int(m["pages_bytes"]), hidden=hidden)

    async def close(self) -> None:
        """End the helper and reap it.  A dump under way is finished by CRIU (it must take its code out of the tree again).  Idempotent."""
        self._sock.close()
        if self._process.returncode is None:
            await spawn.ended(self._process.pid)
            self._process.wait()

    async def _answer(self) -> wire.Message:
        try:
            m = await wire.arecv(self._sock)
        except (EOFError, ConnectionError) as e:
            raise CriuError("the dump helper ended without an answer") from e
        if m.get("op") == "failed":
            raise CriuError(str(m["message"]), first_error=str(m["first_error"]), reasons=list(m["reasons"]), hint=str(m["hint"]))
        return m
