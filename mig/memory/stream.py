"""Frames as they come out of a socket, without copying: the payload lies in a buffer of ours at a known address."""

from __future__ import annotations

import ctypes
import mmap
import socket
from collections.abc import Iterator
from typing import NamedTuple

from mig import wire
from mig.memory.frames import HEAD, MAX_PAYLOAD, PAGE, RAW_LENGTH, Codec, Kind
from mig.memory.packing import PackingError, Unpacker

_SIZE = 2 * MAX_PAYLOAD
_AT_ONCE = 256 << 10
"""Bytes of one read: what a page fault waits behind."""
_WITH_PAYLOAD = (Kind.DATA, Kind.STORE)


class Frame(NamedTuple):
    """One frame.  ``process``: its index; ``length``: bytes of payload, or pages; ``where``: the payload's address in our memory.

    The payload is valid until the next read.
    """

    addr: int
    length: int
    process: int
    kind: Kind
    codec: Codec
    where: int
    payload: memoryview


class Stream:
    """The receiving side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = mmap.mmap(-1, _SIZE)
        self._view = memoryview(self._buffer)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._have = 0

    def frames(self) -> Iterator[Frame]:
        """What one read gives; raises ``EOFError``, ``OSError``, or :class:`wire.WireError` for what no source of ours sends."""
        try:
            n = self.sock.recv_into(self._view[self._have : self._have + _AT_ONCE])
        except BlockingIOError:
            return
        if not n:
            raise EOFError("connection closed by the source")
        self._have += n
        at = 0
        while self._have - at >= HEAD.size:
            addr, length, index, kind, codec = HEAD.unpack_from(self._view, at)
            size = length if kind in _WITH_PAYLOAD else 0
            if size > MAX_PAYLOAD:
                raise wire.WireError(f"a frame of {size} bytes")
            begin = at + HEAD.size
            if self._have - begin < size:
                break
            yield Frame(addr, length, index, Kind(kind), Codec(codec), self._address + begin, self._view[begin : begin + size])
            at = begin + size
        if at:
            rest = bytes(self._view[at : self._have])
            self._view[: len(rest)] = rest
            self._have = len(rest)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def raw_length(f: Frame) -> int:
    """Bytes of memory in a packed frame; raises :class:`wire.WireError` for what no source of ours sends."""
    length = int(RAW_LENGTH.unpack_from(f.payload)[0]) if f.length >= RAW_LENGTH.size else MAX_PAYLOAD + 1
    if not 0 < length <= MAX_PAYLOAD or length % PAGE or f.addr % PAGE:
        raise wire.WireError(f"a packed frame of {length} bytes at {f.addr:#x}")
    return length


class Unpacked:
    """Unpacks frames into a buffer of its own at a known address."""

    def __init__(self) -> None:
        self._unpacker = Unpacker()
        self._room = mmap.mmap(-1, MAX_PAYLOAD)
        self._view = memoryview(self._room)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._room))

    def unpack(self, f: Frame, length: int) -> Frame:
        """The frame with ``length`` bytes of contents, valid until the next call; raises :class:`wire.WireError`."""
        try:
            self._view[:length] = self._unpacker.unpack(f.payload[RAW_LENGTH.size :], f.codec, length)
        except PackingError as e:
            raise wire.WireError(str(e)) from e
        return f._replace(length=length, codec=Codec.RAW, where=self._address, payload=self._view[:length])
