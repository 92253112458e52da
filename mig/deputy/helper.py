"""The agent's side of a conversion in a helper process: start it early, ask when the time has come, repair when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from types import TracebackType
from typing import Any, Self

from mig import spawn
from mig.deputy.convert import Deputy, DeputyError
from mig.deputy.repair import journal_path

ANSWER = 65536
TIMEOUT = 30.0
"""Seconds for one conversion: milliseconds as a rule, but the exec frees the old memory (0.1 s a GiB), and machines can be busy."""


class Helper:
    """A ``convert_main`` process; it waits, imported and ready, until :meth:`convert` is called.  Use it as a context manager."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with theirs:
            self._process = spawn.start("mig.deputy.convert_main", str(theirs.fileno()), fds=[theirs.fileno()])
        self._sock = ours
        self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sock.close()
        if self._process.poll() is None and kind is not None:
            self._process.kill()
        self._process.wait()  # with its socket closed and its answer given it ends at once

    @property
    def pid(self) -> int:
        """Of the helper."""
        return self._process.pid

    async def convert(self, pid: int, cgroup_path: str, drop_signals: int = 0, *, hold: bool = False) -> Deputy:
        """See :func:`mig.deputy.convert.convert_in_helper`.  A helper that dies or hangs is replaced by another, which repairs."""
        try:
            return await self._ask(op="convert", pid=pid, cgroup=cgroup_path, drop=drop_signals, hold=hold)
        except (EOFError, TimeoutError, ConnectionError):
            # its tracees are parked, and stay so without it
            self._process.kill()
            self._process.wait()
        with Helper() as second:
            try:
                return await second._ask(op="repair", pid=pid, cgroup=cgroup_path)
            except (EOFError, TimeoutError, ConnectionError) as e:
                raise DeputyError(f"process {pid} is parked: its conversion broke off twice", rolled_back=False) from e

    async def _ask(self, **request: Any) -> Deputy:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        self._sock.send(json.dumps(request).encode())  # one small packet into an empty socket: it cannot block
        loop.add_reader(self._sock, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), TIMEOUT)
        finally:
            loop.remove_reader(self._sock)
        packet, fds, _, _ = socket.recv_fds(self._sock, ANSWER, 1)
        if not packet:
            raise EOFError("the helper ended without an answer")
        journal_path(request["pid"]).unlink(missing_ok=True)  # not before we know: until then there may be something to repair
        answer: dict[str, Any] = json.loads(packet)
        if not fds:
            raise DeputyError(answer["message"], rolled_back=answer["rolled_back"], hint=answer["hint"])
        os.set_inheritable(fds[0], False)
        return Deputy(answer["pid"], socket.socket(fileno=fds[0]), answer["peer_fd"], answer["holder"])
