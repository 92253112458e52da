"""Datagrams that only holders of the cluster key can make, and that count only once.

A datagram is ``HMAC-SHA256 (32 bytes) + msgpack map``.  Every map carries the sender's node id, its incarnation (wall time of its start, so
that it grows over restarts) and a counter; a receiver takes only what is newer than the newest it has seen from that sender.  Content is
authenticated, not hidden.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, cast

import msgpack

MAX_DATAGRAM = 1400
"""Bytes: fits an Ethernet frame under a tunnel's header, so nothing is fragmented."""
_MAC = 32


class SealError(ValueError):
    """A datagram that is not ours, damaged, or seen before."""


class Seal:
    """Seals and opens the datagrams of one node."""

    def __init__(self, key: bytes, node: int, incarnation: int) -> None:
        self.key, self.node, self.incarnation = key, node, incarnation
        self._counter = 0
        self._newest: dict[int, tuple[int, int]] = {}

    def seal(self, body: dict[str, Any]) -> bytes:
        """One datagram; raises ``ValueError`` when it would be longer than :data:`MAX_DATAGRAM`."""
        self._counter += 1
        payload = cast(bytes, msgpack.packb({**body, "f": self.node, "i": self.incarnation, "c": self._counter}))
        if _MAC + len(payload) > MAX_DATAGRAM:
            raise ValueError(f"datagram of {_MAC + len(payload)} bytes")
        return self._mac(payload) + payload

    def open(self, datagram: bytes) -> dict[str, Any]:
        """The map inside; raises :class:`SealError`.  A sender that shares our node id is let through: the caller reports it."""
        if len(datagram) > MAX_DATAGRAM or not hmac.compare_digest(datagram[:_MAC], self._mac(datagram[_MAC:])):
            raise SealError("not sealed with our key")
        try:
            m = msgpack.unpackb(datagram[_MAC:], strict_map_key=False)
            node, stamp = m["f"], (m["i"], m["c"])
            fresh = stamp > self._newest.get(node, (0, 0))
        except (ValueError, TypeError, KeyError) as e:
            raise SealError("no sender, incarnation and counter in it") from e
        if not fresh:
            raise SealError("seen before")
        self._newest[node] = stamp
        return cast(dict[str, Any], m)

    def _mac(self, payload: bytes) -> bytes:
        return hmac.new(self.key, payload, hashlib.sha256).digest()
