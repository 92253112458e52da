"""The frames of a channel connection: pure encode and decode.

A channel is one TCP connection for one pipe or terminal of a guest, between the home agent and the keeper.  A frame is a byte for its kind,
``u32`` length (little endian) and the payload.  Numbers of kinds are never used again for something else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAX_PAYLOAD = 64 << 10
"""Bytes of one frame's payload: also the largest piece that is read from a pipe at once."""
_HEAD = struct.Struct("<BI")
_NUMBER = struct.Struct("<I")


class FrameError(ConnectionError):
    """The peer sent something that is no frame of ours."""


class Kind(IntEnum):
    """What a frame says.  *Sender* and *receiver* are those of the data."""

    DATA = 1  # bytes that were written on the sender's side
    EOF = 2  # nobody can write any more (pipe); an end-of-file character was typed (terminal)
    STOP = 3  # u32 serial: nothing more is on its way; the receiver answers ACK at once
    ACK = 4  # u32 serial of a STOP, FIN or SYNC
    CREDIT = 5  # u32: the receiver takes so many bytes more
    WANT = 6  # the sender has something: tell me when somebody waits for it
    BROKEN = 7  # the receiver's side is gone: pipe without reader, terminal hung up
    FIN = 8  # u32 serial: the guest has ended and this was all
    SYNC = 9  # u32 serial: send all that there is now, then ACK
    TERMIOS = 10  # modes of the terminal, see mig.channels.tty_modes; from home with the u32 number of these that it has had
    WINSIZE = 11  # struct winsize
    FLUSH = 12  # the guest threw away what was typed and not yet read
    REST = 13  # typed, passed on, and not read by the guest before it stopped or ended
    PEEK = 14  # u32: nobody is seen waiting; show me up to so many bytes of what you have (see mig.channels.preview)
    PREVIEW = 15  # bytes that the sender has and keeps
    CONSUMED = 16  # u32: so many bytes of the PREVIEW were read by the guest
    RETRACT = 17  # from the sender: the PREVIEW does not hold any more; from the receiver, always: the guest has it no more


@dataclass(frozen=True)
class Frame:
    """One frame."""

    kind: Kind
    payload: bytes = b""

    @property
    def number(self) -> int:
        """The u32 of STOP, ACK, CREDIT, FIN, SYNC, PEEK, CONSUMED; raises :class:`FrameError` when the payload is not one."""
        if len(self.payload) != _NUMBER.size:
            raise FrameError(f"{self.kind.name} with {len(self.payload)} bytes")
        n: int = _NUMBER.unpack(self.payload)[0]
        return n


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """The bytes of one frame; raises ``ValueError`` above :data:`MAX_PAYLOAD`."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes")
    return _HEAD.pack(kind, len(payload)) + payload


def number(n: int) -> bytes:
    """The payload of a frame that carries a number."""
    return _NUMBER.pack(n)


class Decoder:
    """Cuts a byte stream into frames, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by ``data``; raises :class:`FrameError` on an unknown kind or a length above the limit."""
        buffer = self._buffer
        buffer += data
        frames, at = [], 0
        while len(buffer) - at >= _HEAD.size:
            kind, length = _HEAD.unpack_from(buffer, at)
            if length > MAX_PAYLOAD:
                raise FrameError(f"frame of {length} bytes announced; the limit is {MAX_PAYLOAD}")
            end = at + _HEAD.size + length
            if len(buffer) < end:
                break
            try:
                frames.append(Frame(Kind(kind), bytes(buffer[at + _HEAD.size : end])))
            except ValueError as e:
                raise FrameError(f"frame of unknown kind {kind}") from e
            at = end
        del buffer[:at]
        return frames
