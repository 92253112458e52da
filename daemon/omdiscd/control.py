"""The control socket: ZMQ ROUTER on an ipc path, one msgpack map a message.

Requests ``{v, id, op, …}``; answers ``{v, id, more, ok, …}``: ``more`` marks progress and stream items, the last answer has it false.
Who asks is known from the kernel: libzmq gives the SO_PEERCRED of an ipc peer as ``Peer-Address`` = ``localhost:UID:GID:PID``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from mig import wire
from mig.errors import BadInput, MigError
from mig.tasks import Tasks
from mig.trust.strangers import Strangers
from omdiscd.silent import Watch

log = logging.getLogger(__name__)

MAX_REQUEST = 64 << 10
"""Bytes of one request."""
_PER_CLIENT = 16
"""Requests of one connection that may be under way."""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    uid: int
    gid: int
    pid: int


class Call:
    """One request and the way back."""

    def __init__(self, server: Control, identity: bytes, request: dict[str, Any], caller: Caller) -> None:
        self._server, self._identity, self.request, self.caller = server, identity, request, caller

    async def item(self, **result: Any) -> None:
        """Progress, or an item of a stream.  Raises ``zmq.ZMQError`` when the client is gone."""
        await self._server.send(self._identity, {"id": self.request.get("id"), "more": True, "ok": True, **result})

    async def finish(self, result: dict[str, Any]) -> None:
        """The answer."""
        await self._server.send(self._identity, {"id": self.request.get("id"), "more": False, "ok": True, **result})

    async def fail(self, error: MigError) -> None:
        """The answer, when it failed."""
        await self._server.send(self._identity, {"id": self.request.get("id"), "more": False, "ok": False, "error": error.to_wire()})


Handler = Callable[[Call], Awaitable[dict[str, Any]]]


class Control:
    """Serves ``handlers`` (by op) on ``path``; open to all users, each handler judges its caller."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self.path, self.handlers = path, handlers
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._strangers = Strangers()
        self._watch: Watch | None = None
        self._tasks = Tasks()
        self._running: dict[bytes, set[asyncio.Task[None]]] = {}

    def start(self) -> None:
        """Bind, replacing what a dead predecessor left."""
        self._context = zmq.asyncio.Context()
        s = self._context.socket(zmq.ROUTER)
        s.setsockopt(zmq.LINGER, 500)
        s.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST)
        s.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to a client that is gone raises: its streams end then
        self._watch = Watch(s, self.path, self._strangers)
        s.bind(f"ipc://{self.path}")
        os.chmod(self.path, 0o666)  # whom a request may touch is judged by the caller's user id
        self._socket = s

    async def run(self) -> None:
        """Serve until cancelled."""
        assert self._socket is not None and self._watch is not None
        self._tasks.spawn(self._watch.run())
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            identity, body = frames[0].bytes, frames[-1]
            try:
                caller = _caller(str(body.get("Peer-Address")))
            except (zmq.ZMQError, ValueError) as e:
                log.error("a request without credentials was dropped: %s", e)
                continue
            self._watch.silent.asked(caller.pid, asyncio.get_running_loop().time())
            tasks = self._running.setdefault(identity, set())
            if len(tasks) >= _PER_CLIENT:
                log.warning("process %d has %d requests under way: one more was dropped", caller.pid, len(tasks))
                continue
            task = asyncio.ensure_future(self._serve(identity, body.bytes, caller))
            tasks.add(task)
            task.add_done_callback(lambda t, i=identity: self._done(i, t))  # type: ignore[misc]  # mypy cannot type a lambda's default

    def close(self) -> None:
        """End all requests, send what is queued, remove the socket."""
        for tasks in self._running.values():
            for t in tasks:
                t.cancel()
        self._tasks.cancel()
        if self._watch is not None:
            self._watch.close()
        if self._socket is not None:
            self._socket.close()
        if self._context is not None:
            self._context.term()
        self.path.unlink(missing_ok=True)

    def _done(self, identity: bytes, task: asyncio.Task[None]) -> None:
        tasks = self._running.get(identity, set())
        tasks.discard(task)
        if not tasks:
            self._running.pop(identity, None)

    async def _serve(self, identity: bytes, body: bytes, caller: Caller) -> None:
        call = Call(self, identity, {}, caller)
        try:
            try:
                await call.finish(await self._handler(call, body)(call))
            except MigError as e:
                await call.fail(e)
            except (zmq.ZMQError, asyncio.CancelledError):
                raise
            except Exception as e:
                log.exception("request %s of process %d failed", call.request.get("op"), caller.pid)
                await call.fail(MigError(f"omdiscd failed: {type(e).__name__}: {e}", hint="its log has the details"))
        except zmq.ZMQError as e:
            log.debug("process %d is gone: %s", caller.pid, e)

    def _handler(self, call: Call, body: bytes) -> Handler:
        """Read the request into ``call``; raises :class:`BadInput` when it is not one of ours."""
        try:
            call.request = wire.unpack(body)
        except wire.WireError as e:
            self._strangers.say(log, f"process {call.caller.pid} of user {call.caller.uid}", f"what it sends is no request: {e}")
            raise BadInput(f"not a request: {e}") from None
        v, op = call.request.get("v"), call.request.get("op")
        if not isinstance(v, int) or not wire.OLDEST <= v <= wire.VERSION:
            raise BadInput(f"this omdiscd speaks version {wire.VERSION} of the control protocol, the request is of version {v}")
        if not isinstance(op, str) or op not in self.handlers:
            raise BadInput(f"omdiscd knows no operation {op!r}", hint="known: " + ", ".join(sorted(self.handlers)))
        return self.handlers[op]

    async def send(self, identity: bytes, m: dict[str, Any]) -> None:
        """Send one answer."""
        assert self._socket is not None
        await self._socket.send_multipart([identity, msgpack.packb({"v": wire.VERSION, **m}, use_bin_type=True)])


def _caller(address: str) -> Caller:
    _, uid, gid, pid = address.rsplit(":", 3)
    return Caller(int(uid), int(gid), int(pid))
