"""The sockets under the gossip: unicast on the node's address, multicast on chosen interfaces; sealed going out, opened coming in."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import psutil

from mig.model import NodeInfo
from mig.trust.strangers import Strangers
from omdiscd.gossip import GROUP, Changed, Membership, Outcome, Send
from omdiscd.seal import Reflected, Seal, SealError

log = logging.getLogger(__name__)

_IP_MULTICAST_IF = 32
_IP_ADD_MEMBERSHIP = 35


class Discovery:
    """Runs a :class:`Membership` on real sockets.  ``me`` gives our own fresh entry, ``changed`` hears of every change."""

    def __init__(
        self,
        members: Membership,
        seal: Seal,
        *,
        group: str,
        interfaces: list[str],
        me: Callable[[], NodeInfo],
        changed: Callable[[Changed], None],
    ) -> None:
        self.members, self.seal, self.group, self.interfaces, self._me, self._changed = members, seal, group, interfaces, me, changed
        self.rejected = 0
        """Datagrams that were not sealed with our key, damaged or repeated."""
        self.strangers = Strangers()
        self.multicast_heard = 0
        self._sock: socket.socket | None = None
        self._transports: list[asyncio.DatagramTransport] = []
        self._quiet: set[str] = set()

    async def start(self) -> None:
        """Bind; raises ``OSError`` when the port is taken or the address is not ours."""
        loop = asyncio.get_running_loop()
        host, port = self.members.me.addr, self.members.me.port
        s = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        s.bind((host, port))
        self._sock = s
        await self._listen(loop, s, False)
        if self.group and self.interfaces:
            await self._join(loop, s, port)

    async def _join(self, loop: asyncio.AbstractEventLoop, sender: socket.socket, port: int) -> None:
        m = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        m.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # several nodes on one machine, as in tests
        m.bind((self.group, port))
        joined = []
        for name in self.interfaces:
            mreqn = struct.pack("@4s4si", socket.inet_aton(self.group), b"\0" * 4, socket.if_nametoindex(name))
            try:
                m.setsockopt(socket.IPPROTO_IP, _IP_ADD_MEMBERSHIP, mreqn)
                joined.append(name)
            except OSError as e:
                log.warning("no multicast on %s: %s", name, e.strerror)
        self.interfaces = joined
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        await self._listen(loop, m, True)

    async def _listen(self, loop: asyncio.AbstractEventLoop, s: socket.socket, group: bool) -> None:
        t, _ = await loop.create_datagram_endpoint(lambda: _Receiver(self, group), sock=s)
        self._transports.append(t)

    async def run(self) -> None:
        """Gossip until cancelled."""
        while True:
            self._apply(self.members.tick(time.monotonic(), self._me()))
            await asyncio.sleep(self.members.timing.gossip_s)

    def urgent(self) -> None:
        """Tell everybody now."""
        self._apply(self.members.urgent(time.monotonic(), self._me()))

    def received(self, data: bytes, source: tuple[Any, ...], group: bool) -> None:
        """A datagram came in."""
        try:
            body = self.seal.open(data)
            outcome = self.members.datagram(time.monotonic(), (source[0], source[1]), body)
        except Reflected:
            if not group:  # our own hello to the group comes back by itself
                self._refuse(source, "sends our own datagrams back to us")
            return
        except SealError as e:
            self._refuse(source, f"its datagrams are ignored: {e}")
            return
        except (ValueError, TypeError, KeyError) as e:
            self._refuse(source, f"its datagrams make no sense: {e}")
            return
        if group and body["f"] != self.members.me.id:
            self.multicast_heard += 1
        if self.members.clash:
            self._once(f"node {self.members.clash} uses our id {self.members.me.id}: give one of the two another id in its configuration")
        self._apply(outcome)

    def _refuse(self, source: tuple[Any, ...], why: str) -> None:
        self.rejected += 1
        self.strangers.say(log, str(source[0]), why)

    def close(self) -> None:
        """Close all sockets."""
        for t in self._transports:
            t.close()

    def _apply(self, outcome: Outcome) -> None:
        for s in outcome.sends:
            self._send(s)
        for c in outcome.changes:
            self._changed(c)

    def _send(self, send: Send) -> None:
        assert self._sock is not None
        datagram = self.seal.seal(send.body)
        if send.to != GROUP:
            self._put(datagram, send.to)
        elif self.group:
            for name in self.interfaces:
                try:
                    mreqn = struct.pack("@4s4si", b"\0" * 4, b"\0" * 4, socket.if_nametoindex(name))
                    self._sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_IF, mreqn)
                except OSError as e:
                    self._once(f"no hello on {name}: {e.strerror}")
                    continue
                self._put(datagram, (self.group, self.members.me.port))

    def _put(self, datagram: bytes, to: tuple[str, int]) -> None:
        assert self._sock is not None
        try:
            self._sock.sendto(datagram, to)
        except OSError as e:
            # a full buffer, a route that is gone, an ICMP answer to an earlier datagram: the next interval tries again
            self._once(f"cannot send to {to[0]}: {e.strerror}")

    def _once(self, text: str) -> None:
        if text not in self._quiet:
            self._quiet.add(text)
            log.warning("%s", text)


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, owner: Discovery, group: bool) -> None:
        self.owner, self.group = owner, group

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.owner.received(data, addr, self.group)

    def error_received(self, exc: Exception) -> None:
        log.debug("UDP: %s", exc)  # ICMP port unreachable of a peer that is down: its age tells the same


def interface_of(addr: str) -> str:
    """The interface that has this address; "" when none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == addr for a in addresses):
            return name
    return ""


def first_address(interface: str) -> str:
    """The first IPv4 address of an interface; raises ``LookupError`` when there is no such interface or it has none."""
    addresses = psutil.net_if_addrs().get(interface)
    if addresses is None:
        raise LookupError(f"there is no interface {interface}")
    for a in addresses:
        if a.family == socket.AF_INET:
            return a.address
    raise LookupError(f"interface {interface} has no IPv4 address")


def default_address() -> str:
    """The IPv4 address from which this machine talks to others: of the default route, else any but loopback, else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # documentation prefix; connecting a UDP socket only looks up the route
            addr = str(s.getsockname()[0])
            if addr != "0.0.0.0":
                return addr
        except OSError:
            pass  # no default route: an isolated network
    for name, addresses in psutil.net_if_addrs().items():
        for a in addresses:
            if a.family == socket.AF_INET and name != "lo":
                return a.address
    return "127.0.0.1"
