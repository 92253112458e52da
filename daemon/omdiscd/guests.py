"""All agents and keepers of this node, found by their sockets: so a restarted omdiscd finds every guest again.

An agent serves a guest whose home is here, a keeper one that runs here; a guest that has come home has both.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mig import paths, wire
from mig.model import GuestState, NodeInfo
from mig.tasks import beat

log = logging.getLogger(__name__)

SCAN = 0.5
"""Seconds between two looks into the socket directories."""
_STALE = 0.4
"""Seconds after which a socket on which nobody listens is removed: its owner was killed.  One that was just bound is not listened on for
microseconds."""


class Link:
    """The connection to one agent or keeper."""

    def __init__(self, path: Path, role: str, sock: socket.socket) -> None:
        self.path, self.role, self.sock = path, role, sock
        self.state: GuestState | None = None
        self.known = asyncio.Event()  # set with the first state
        self.closed = False
        self._orders: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._ids = itertools.count(1)
        self._lock = asyncio.Lock()

    async def send(self, **m: Any) -> None:
        """Send one message; raises ``ConnectionError`` when the other side is gone."""
        async with self._lock:
            await wire.asend(self.sock, **m)

    async def order(self, **m: Any) -> tuple[int, asyncio.Queue[dict[str, Any] | None]]:
        """Send an order with a fresh id; its answers come through the queue, None when the other side is gone."""
        i = next(self._ids)
        q: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._orders[i] = q
        try:
            await self.send(id=i, **m)
        except OSError:
            q.put_nowait(None)
        return i, q

    def done(self, i: int) -> None:
        """No more answers to order ``i`` are wanted."""
        self._orders.pop(i, None)

    def answer(self, m: dict[str, Any]) -> None:
        """Give an answer to whoever ordered."""
        if q := self._orders.get(int(m.get("id") or 0)):
            q.put_nowait(m)

    def end(self) -> None:
        """The other side is gone."""
        self.closed = True
        self.known.set()
        self.sock.close()
        for q in self._orders.values():
            q.put_nowait(None)


class Guests:
    """Watches the directories, keeps the links, passes events on."""

    def __init__(self, me: Callable[[], NodeInfo], event: Callable[[dict[str, Any]], None], changed: Callable[[], None]) -> None:
        self._me, self._event, self._changed = me, event, changed
        self.on_agent_gone: Callable[[int, GuestState | None], None] = lambda pid, state: None
        """Told the pid at home and the last state of every agent that is gone, whatever the reason."""
        self.on_costs: Callable[[dict[str, Any]], None] = lambda result: None
        """Told what a guest's move away from here cost."""
        self.links: dict[Path, Link] = {}
        self._tasks: dict[Path, asyncio.Task[None]] = {}
        self._refused: dict[Path, float] = {}

    async def run(self) -> None:
        """Look for new sockets until cancelled."""
        while True:
            self.look()
            await beat(SCAN)

    def look(self) -> None:
        """Connect to every socket that is not connected yet."""
        for directory, role in ((paths.AGENTS, "agent"), (paths.KEEPERS, "keeper")):
            for f in directory.iterdir():
                if f.suffix == ".sock" and f not in self._tasks:
                    self._tasks[f] = asyncio.ensure_future(self._attend(f, role))

    async def _attend(self, path: Path, role: str) -> None:
        loop = asyncio.get_running_loop()
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.wait_for(loop.sock_connect(s, str(path)), 5)
        except (OSError, TimeoutError) as e:
            s.close()
            self._unreachable(path, e)
            return
        self._refused.pop(path, None)
        link = self.links[path] = Link(path, role, s)
        try:
            await link.send(op="watch")
            while True:
                self._message(link, await wire.arecv(s))
        except (EOFError, OSError, ValueError, TypeError) as e:
            log.info("%s %s is gone: %s", role, path.stem, e)
        finally:
            del self.links[path]
            self._tasks.pop(path, None)
            link.end()
            self._changed()
        if role == "agent":
            self.on_agent_gone(int(path.stem), link.state)

    def _unreachable(self, path: Path, e: BaseException) -> None:
        self._tasks.pop(path, None)
        if isinstance(e, FileNotFoundError):
            self._refused.pop(path, None)
        elif time.monotonic() - self._refused.setdefault(path, time.monotonic()) > _STALE:
            log.info("nobody listens on %s: removed", path)
            path.unlink(missing_ok=True)
            self._refused.pop(path)
            if path.parent == paths.AGENTS:
                self.on_agent_gone(int(path.stem), None)

    def _message(self, link: Link, m: dict[str, Any]) -> None:
        op = m.get("op")
        if op == "state":
            link.state = GuestState.from_map(m["state"])
            link.known.set()
            self._changed()
        elif op == "event":
            self._event(dict(m["event"]))
        elif op == "costs":
            self.on_costs(m)
        else:
            link.answer(m)

    # -- looking up ---------------------------------------------------------------------------------------------------------------

    def agent(self, pid: int) -> Link | None:
        """The agent of the guest that has this pid at home, here."""
        return self.links.get(paths.AGENTS / f"{pid}.sock")

    def keeper(self, host_pid: int) -> Link | None:
        """The keeper of the guest that has this pid on this host."""
        return next((k for k in self.keepers() if k.state and k.state.host_pid == host_pid), None)

    def agents(self) -> list[Link]:
        """All agents."""
        return [x for x in self.links.values() if x.role == "agent"]

    def keepers(self) -> list[Link]:
        """All keepers."""
        return [x for x in self.links.values() if x.role == "keeper"]

    def helpers(self) -> set[int]:
        """Pids of all agents and keepers."""
        return {x.state.helper for x in self.links.values() if x.state and x.state.helper}

    def hosts(self) -> set[int]:
        """Pids here of all guests that run here."""
        return {k.state.host_pid for k in self.keepers() if k.state and k.state.host_pid}

    def rows(self) -> list[GuestState]:
        """A row a guest: the agent's where its home is here, else the keeper's."""
        home = self._me().name
        mine = {x.state.pid for x in self.agents() if x.state}
        rows = [x.state for x in self.agents() if x.state]
        return rows + [k.state for k in self.keepers() if k.state and not (k.state.home == home and k.state.pid in mine)]

    def hosted(self) -> int:
        """Guests that run here and belong elsewhere."""
        home = self._me().name
        return sum(1 for k in self.keepers() if k.state is None or k.state.home != home)

    async def tell_agents(self, node: NodeInfo, state: str) -> None:
        """A node's state or boot changed: tell the agents whose guests are there, so that they can decide."""
        for x in self.agents():
            if x.state is None or x.state.where == node.name or x.state.state in ("moving", "in-doubt", "settling"):
                try:
                    await x.send(op="node", name=node.name, state=state, boot=node.boot)
                except OSError:
                    continue  # gone; its reader task notices
