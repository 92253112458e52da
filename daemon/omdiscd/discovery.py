"""Runs the pool's machine (:mod:`mig.pool`) on real sockets and the real clock: sealed going out, opened coming in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from mig.model import NodeInfo
from mig.pool import wire
from mig.pool.pool import GROUP, Changed, Knock, Outcome, Pool, Send
from mig.trust.strangers import Strangers
from omdiscd.gossip_sockets import GossipSockets
from omdiscd.seal import Reflected, Seal, SealError

log = logging.getLogger(__name__)

_SHORTEST = 0.01
"""Seconds between two ticks at least."""
_QUIET = 60.0
"""Seconds before the same line is logged again."""


def clock() -> float:
    """Seconds of a clock that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Discovery:
    """``me`` gives our own fresh entry, ``changed`` hears of every change."""

    def __init__(
        self,
        members: Pool,
        seal: Seal,
        *,
        group: str,
        interfaces: list[str],
        me: Callable[[], NodeInfo],
        changed: Callable[[Changed], None],
    ) -> None:
        self.members, self.seal, self.group, self._me, self._changed = members, seal, group, me, changed
        self._sockets = GossipSockets(members.me.addr, members.me.port, group, interfaces, self.received)
        self.wanted = list(interfaces) if group else []
        """Where the group shall be heard, whether or not it can be now."""
        self.rejected = 0
        """Datagrams that were not sealed with our key, damaged or repeated."""
        self.strangers = Strangers()
        self.multicast_heard = 0
        self._said: dict[str, float] = {}
        self._knocking: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn_at = 0.0

    @property
    def interfaces(self) -> list[str]:
        """Where hellos go to the group."""
        return self._sockets.interfaces

    def join(self, interface: str) -> None:
        """Hear the group there, after the interface was away; raises ``OSError``, EADDRINUSE when it is heard already."""
        self._sockets.join(interface)

    async def start(self) -> None:
        """Bind; raises ``OSError`` when the port is taken or the address is not ours."""
        await self._sockets.open()

    async def run(self) -> None:
        """Gossip until cancelled."""
        self._ended = asyncio.get_running_loop().create_future()
        self._turn()
        try:
            await self._ended
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _turn(self) -> None:  # several times a second for ever: a callback costs half of what waking a task does
        try:
            self._apply(self.members.tick(clock(), self._me()))
        except Exception as e:
            self._timer = None
            if self._ended is not None and not self._ended.done():
                self._ended.set_exception(e)
            return
        self._arm(self.members.due())

    def _arm(self, due: float) -> None:
        self._turn_at = due
        self._timer = asyncio.get_running_loop().call_later(max(_SHORTEST, due - clock()), self._turn)

    def urgent(self) -> None:
        """Tell everybody now."""
        self._apply(self.members.urgent(clock(), self._me()))

    def nodes(self) -> list[NodeInfo]:
        """All known nodes, ourselves included, with their ages."""
        return self.members.nodes(clock())

    def records(self) -> list[NodeInfo]:
        """What seldom changes of all known nodes, ourselves included."""
        return self.members.records()

    def received(self, data: bytes, source: tuple[Any, ...], group: bool) -> None:
        """A datagram came in."""
        try:
            body = self.seal.open(data)
            message = wire.decode(body)
        except Reflected:
            if not group:  # our own hello to the group comes back by itself
                self._refuse(source, "sends our own datagrams back to us")
            return
        except SealError as e:
            self._refuse(source, f"its datagrams are ignored: {e}")
            return
        except ValueError as e:
            self._refuse(source, f"its datagrams make no sense: {e}")
            return
        me = self.members.me
        if group and message.sender != me.id:
            self.multicast_heard += 1
        outcome = self.members.datagram(clock(), (source[0], source[1]), message, group=group)
        if self.members.clash:
            self.say(f"node {self.members.clash} uses our id {me.id}: give one of the two another id in its configuration")
        self._apply(outcome)
        if self._timer is not None and (due := self.members.news.due()) < self._turn_at:
            self._timer.cancel()
            self._arm(due)

    def _refuse(self, source: tuple[Any, ...], why: str) -> None:
        self.rejected += 1
        self.strangers.say(log, str(source[0]), why)

    def close(self) -> None:
        """Close all sockets."""
        self._sockets.close()
        for t in self._knocking:
            t.cancel()

    def say(self, text: str) -> None:
        """Log a warning, the same one not more often than once a minute."""
        now = time.monotonic()
        if now - self._said.get(text, -_QUIET) >= _QUIET:
            if len(self._said) > 1000:
                self._said.clear()
            self._said[text] = now
            log.warning("%s", text)

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _apply(self, outcome: Outcome) -> None:
        for s in outcome.sends:
            self._send(s)
        for c in outcome.changes:
            self._changed(c)
        for k in outcome.knocks:
            task = asyncio.ensure_future(self._knock(k))
            self._knocking.add(task)
            task.add_done_callback(self._knocking.discard)

    def _send(self, send: Send) -> None:
        datagram = self.seal.seal(wire.encode(send.message))
        if send.to != GROUP:
            try:
                self._sockets.send(datagram, send.to)
            except OSError as e:
                # a full buffer, a route that is gone, an ICMP answer to an earlier datagram: the next interval tries again
                self.say(f"cannot send to {send.to[0]}: {e.strerror}")
            return
        for name in self._sockets.interfaces if self.group else ():
            try:
                self._sockets.send_to_group(datagram, name)
            except OSError as e:
                self.say(f"no hello on {name}: {e.strerror}")

    async def _knock(self, k: Knock) -> None:
        """Whether its kernel takes a connection: that needs no daemon that gets CPU time."""
        family = socket.AF_INET6 if ":" in k.to[0] else socket.AF_INET
        answered = False
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as s:
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(s, k.to), 2 * self.members.timing.timeout_s)
                answered = True
        self._apply(self.members.knocked(clock(), k.node, answered))
