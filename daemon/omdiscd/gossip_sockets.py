"""The UDP sockets of the gossip: one on the node's address, and one in the multicast group, on chosen interfaces; IPv4 or IPv6."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_IP_MULTICAST_IF = 32
_IP_ADD_MEMBERSHIP = 35
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_BUFFER = 1 << 20
"""Bytes of receive buffer: a daemon that is starved for a second shall find what others said in the meantime."""

Received = Callable[[bytes, tuple[Any, ...], bool], None]


class GossipSockets:
    """Opened on one address; a change of address needs new ones."""

    def __init__(self, addr: str, port: int, group: str, interfaces: list[str], received: Received) -> None:
        self.addr, self.port, self.group, self._received = addr, port, group, received
        self.interfaces = interfaces
        """Where the group was joined, after :meth:`open`."""
        self._v6 = ":" in addr
        self._family = socket.AF_INET6 if self._v6 else socket.AF_INET
        self._transports: list[asyncio.DatagramTransport] = []
        self._sock: socket.socket | None = None
        self._member: socket.socket | None = None

    async def open(self) -> None:
        """Bind and join; raises ``OSError`` when the port is taken or the address is not ours."""
        s = self._new()
        s.bind((self.addr, self.port))
        self._sock = s
        await self._listen(s, False)
        if self.group and self.interfaces:
            await self._join(s)

    def close(self) -> None:
        """Close all."""
        for t in self._transports:
            t.close()

    def send(self, datagram: bytes, to: tuple[str, int]) -> None:
        """To one address; raises ``OSError``."""
        assert self._sock is not None
        self._sock.sendto(datagram, to)

    def send_to_group(self, datagram: bytes, interface: str) -> None:
        """To the group on one interface; raises ``OSError``."""
        assert self._sock is not None
        index = socket.if_nametoindex(interface)
        if self._v6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        else:
            self._sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_IF, struct.pack("@4s4si", b"\0" * 4, b"\0" * 4, index))
        self._sock.sendto(datagram, (self.group, self.port))

    def join(self, interface: str) -> None:
        """Hear the group on one interface more (or again, after it was away); raises ``OSError``, also when it is joined already."""
        if self._member is not None:
            self._add(self._member, interface)
            if interface not in self.interfaces:
                self.interfaces.append(interface)

    def _new(self) -> socket.socket:
        s = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        if self._v6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return s

    async def _join(self, sender: socket.socket) -> None:
        m = self._new()
        m.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # several nodes on one machine, as in tests
        # without this we would hear what other programs joined the group on
        if self._v6:
            m.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        else:
            m.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        m.bind((self.group, self.port))
        self._member = m
        joined = []
        for name in self.interfaces:
            try:
                self._add(m, name)
                joined.append(name)
            except OSError as e:
                log.warning("no multicast on %s: %s", name, e.strerror)
        self.interfaces = joined
        if self._v6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        await self._listen(m, True)

    def _add(self, m: socket.socket, interface: str) -> None:
        index = socket.if_nametoindex(interface)
        group = socket.inet_pton(self._family, self.group)
        if self._v6:
            m.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))
        else:
            m.setsockopt(socket.IPPROTO_IP, _IP_ADD_MEMBERSHIP, struct.pack("@4s4si", group, b"\0" * 4, index))

    async def _listen(self, s: socket.socket, group: bool) -> None:
        t, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Receiver(self._received, group), sock=s)
        self._transports.append(t)


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, received: Received, group: bool) -> None:
        self._received, self._group = received, group

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._received(data, addr, self._group)

    def error_received(self, exc: Exception) -> None:
        log.debug("UDP: %s", exc)  # ICMP port unreachable of a peer that is down: its silence tells the same
