"""Datagrams that only holders of a cluster key can make and read, and that count only once.

A datagram is ``"m2"``, a random nonce of 24 bytes, and a libsodium secret box (XSalsa20, Poly1305) around a msgpack map.  Every map
carries the sender's node id ``f``, its incarnation ``i`` (wall time of its start, so that it grows over restarts) and a counter ``c``.
A receiver takes each counter of a sender's newest incarnation once, and nothing of an older one; a datagram of its own that somebody sends
back is refused as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgpack
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

MAX_DATAGRAM = 1400
"""Bytes: fits an Ethernet frame under a tunnel's header, so nothing is fragmented."""
MAGIC = b"m2"
OVERHEAD = len(MAGIC) + SecretBox.NONCE_SIZE + SecretBox.MACBYTES
"""Bytes of a datagram that are not the map."""
WINDOW = 128
"""Datagrams of one sender by which one may be late.  Networks with several paths reorder a few; each costs a bit of memory."""
_LARGEST = 1 << 62


class SealError(ValueError):
    """A datagram that is not ours, damaged, or seen before."""


class SeenBefore(SealError):
    """A repeated datagram, or one of an incarnation that is over: a network that repeats, or somebody who recorded it."""


class Reflected(SealError):
    """A datagram of our own: our own hello to the group, or somebody who sends back what we said."""


@dataclass
class _Sender:
    """What was taken of one node: its incarnation, the highest counter, and a bit for each of the ``WINDOW`` counters up to it."""

    incarnation: int
    newest: int = 0
    taken: int = 0

    def take(self, counter: int) -> bool:
        if counter > self.newest:
            self.taken = (self.taken << min(counter - self.newest, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self.newest = counter
            return True
        bit = 1 << (self.newest - counter)
        if self.newest - counter >= WINDOW or self.taken & bit:
            return False
        self.taken |= bit
        return True


class Seal:
    """Seals and opens the datagrams of one node.  ``keys``: one, or several of which the first seals and all open."""

    def __init__(self, keys: bytes | list[bytes], node: int, incarnation: int) -> None:
        self.node, self.incarnation = node, incarnation
        self._counter = 0
        self._senders: dict[int, _Sender] = {}
        self.change([keys] if isinstance(keys, bytes) else keys)

    def change(self, keys: list[bytes]) -> None:
        """Other keys from now on: the first seals, all open."""
        self.keys = list(keys)
        self._boxes = [SecretBox(k) for k in keys]

    def seal(self, body: dict[str, Any]) -> bytes:
        """One datagram; raises ``ValueError`` when it would be longer than :data:`MAX_DATAGRAM`."""
        self._counter += 1
        payload = cast(bytes, msgpack.packb({**body, "f": self.node, "i": self.incarnation, "c": self._counter}))
        if OVERHEAD + len(payload) > MAX_DATAGRAM:
            raise ValueError(f"datagram of {OVERHEAD + len(payload)} bytes")
        return MAGIC + bytes(self._boxes[0].encrypt(payload))

    def open(self, datagram: bytes) -> dict[str, Any]:
        """The map inside; raises :class:`SealError`.  A *different* sender that has our node id is let through: the caller reports it."""
        m = self._map(self._decrypt(datagram))
        node, incarnation, counter = (_number(m, k) for k in "fic")
        if node == self.node and incarnation == self.incarnation:
            raise Reflected("our own, sent back")
        sender = self._senders.get(node)
        if sender is None or incarnation > sender.incarnation:
            sender = self._senders[node] = _Sender(incarnation)
        if incarnation < sender.incarnation or not sender.take(counter):
            raise SeenBefore("seen before")
        return m

    def _decrypt(self, datagram: bytes) -> bytes:
        if datagram[:2] != MAGIC or not OVERHEAD < len(datagram) <= MAX_DATAGRAM:
            raise SealError("not a datagram of ours")
        for box in self._boxes:
            try:
                return bytes(box.decrypt(datagram[len(MAGIC) :]))
            except CryptoError:
                continue
        raise SealError("not sealed with our key")

    @staticmethod
    def _map(plain: bytes) -> dict[str, Any]:
        try:
            m = msgpack.unpackb(plain, strict_map_key=False)
        except Exception as e:  # msgpack raises several that have no common base
            raise SealError("no map in it") from e
        if not isinstance(m, dict):
            raise SealError("no map in it")
        return m


def _number(m: dict[str, Any], key: str) -> int:
    v = m.get(key)
    if type(v) is not int or not 0 <= v < _LARGEST:
        raise SealError("no sender, incarnation and counter in it")
    return v
