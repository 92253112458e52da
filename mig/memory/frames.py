"""The wire of pages: two TCP connections from a destination's pager to the source's page source, ``demand`` and ``push``.

Both begin with the proof of the cluster key and one msgpack message ``{token, role}`` (see :mod:`mig.wire`); the push connection's also
says what is still ``missing`` (``[[index, start, end], …]``) when it is made again.  After that

* the pager sends :data:`REQUEST` records on ``demand`` (one page each), and at the very end one message ``{op: "all"}`` on ``push``;
* the source sends frames on both: a :data:`HEAD`, then as many bytes as it says.

Addresses are those of the source process; ``index`` is the process's place in the layout that travels with the images.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

PAGE = 4096
HEAD = struct.Struct("<QIHBB")
"""Address, bytes that follow (or, without payload: pages), index of the process, :class:`Kind`, :class:`Codec`."""
REQUEST = struct.Struct("<QHxxxxxx")
"""Address of the page, index of the process."""
RAW_LENGTH = struct.Struct("<I")
"""Before a packed payload: its length when unpacked."""
CHUNK = 32 << 10
"""Bytes that are pushed at a time: what a demanded page waits behind (0.26 ms at 1 Gbit/s)."""
MAX_PAYLOAD = 1 << 20
"""Bytes of one frame, packed or not."""
MAX_PAGES = 0xFFFFFFFF


class Kind(IntEnum):
    """What a frame says of its pages."""

    DATA = 1  # their contents: for the process
    STORE = 2  # their contents at some moment before the freeze: for the page store
    ZERO = 3  # they read as zero (no payload)
    STORED = 4  # what the page store has of them is current (no payload)
    ALL = 5  # everything has been sent (push; no payload)


class Codec(IntEnum):
    """How a payload is packed."""

    RAW = 0
    LZ4 = 1
    ZSTD = 2


class Range(NamedTuple):
    """Pages ``[start, end)`` of the source process ``process`` (its index)."""

    process: int
    start: int
    end: int


def data(kind: Kind, index: int, addr: int, length: int, codec: Codec = Codec.RAW) -> bytes:
    """The head of a frame with ``length`` bytes of payload (for a packed one: :data:`RAW_LENGTH` included)."""
    return HEAD.pack(addr, length, index, kind, codec)


def note(kind: Kind, index: int = 0, start: int = 0, end: int = 0) -> bytes:
    """Frames without payload for ``[start, end)``; one, unless the range is over 16 TiB."""
    out = b""
    while True:
        pages = min((end - start) // PAGE, MAX_PAGES)
        out += HEAD.pack(start, pages, index, kind, Codec.RAW)
        start += pages * PAGE
        if start >= end:
            return out
