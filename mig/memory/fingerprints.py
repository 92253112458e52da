"""What the destination's page store holds, remembered by fingerprints: a page that reads as it was sent need not be sent again.

Many a page that was written holds what it held before: a program that counts references puts every count back, one that locks unlocks.
And where the kernel cannot tell which pages were written (Linux before 6.7) comparing them is the only way.

A fingerprint is 128 bits of XXH3 (https://xxhash.com) under a secret seed of this move: two different pages have the same one with a
probability of 2^-128, and nobody can choose pages that do.  It costs about 1 µs a page and 16 bytes of memory (1/256 of what was sent).
"""

from __future__ import annotations

import secrets
from enum import Enum

from xxhash import xxh3_128_digest

from mig.memory.frames import PAGE

_SIZE = 16
_BLOCK = 512  # pages whose fingerprints lie together
_NONE = bytes(_SIZE)


class Part(Enum):
    """What has to be done about a run of pages."""

    SEND = 1  # the store has something else, or nothing
    SAME = 2  # the store has exactly this
    ZERO = 3  # they hold nothing


class Fingerprints:
    """Of one page store.  Not safe for threads, but for looking while nobody keeps."""

    def __init__(self) -> None:
        self._seed = secrets.randbits(64)
        self._zero = xxh3_128_digest(bytes(PAGE), self._seed)
        self._blocks: dict[tuple[int, int], bytearray] = {}

    def split(self, index: int, addr: int, contents: bytes | memoryview, *, keep: bool = False) -> list[tuple[Part, int, int]]:
        """Runs ``(part, from, to)`` of whole pages of process ``index`` at ``addr``; offsets into the contents.

        ``keep``: what is to be sent goes into the store, and is remembered.
        """
        runs: list[tuple[Part, int, int]] = []
        at = 0
        while at < len(contents):
            end = min(len(contents), at + _BLOCK * PAGE - (addr + at) % (_BLOCK * PAGE))
            for part, a, b in self._split(index, addr + at, contents[at:end], keep):
                if runs and runs[-1][0] is part:
                    runs[-1] = (part, runs[-1][1], at + b)
                else:
                    runs.append((part, at + a, at + b))
            at = end
        return runs

    def compare(self, index: int, addr: int, contents: bytes | memoryview) -> list[bool | None]:
        """Whether each page is what was sent of it; None: none was."""
        out: list[bool | None] = []
        for at in range(0, len(contents), PAGE):
            sent = self._sent(index, addr + at)
            out.append(None if sent == _NONE else sent == xxh3_128_digest(contents[at : at + PAGE], self._seed))
        return out

    def _sent(self, index: int, addr: int) -> bytes:
        number, place = divmod(addr // PAGE, _BLOCK)
        block = self._blocks.get((index, number))
        return bytes(block[place * _SIZE : (place + 1) * _SIZE]) if block is not None else _NONE

    def _split(self, index: int, addr: int, contents: bytes | memoryview, keep: bool) -> list[tuple[Part, int, int]]:
        """As :meth:`split`, within one block; as a rule all of its pages are alike."""
        number, place = divmod(addr // PAGE, _BLOCK)
        found = [xxh3_128_digest(contents[at : at + PAGE], self._seed) for at in range(0, len(contents), PAGE)]
        now = b"".join(found)
        here = slice(place * _SIZE, place * _SIZE + len(now))
        block = self._blocks.get((index, number))
        before = bytes(block[here]) if block is not None else bytes(len(now))
        if before == now:
            return [(Part.SAME, 0, len(contents))]
        if self._zero not in found and not any(before):
            parts = [(Part.SEND, 0, len(contents))]
        else:
            sent = (before[at : at + _SIZE] for at in range(0, len(before), _SIZE))
            parts = [
                (Part.ZERO if f == self._zero else Part.SAME if f == s else Part.SEND, n * PAGE, (n + 1) * PAGE)
                for n, (f, s) in enumerate(zip(found, sent, strict=True))
            ]
        if keep:
            if block is None:
                block = self._blocks[index, number] = bytearray(_BLOCK * _SIZE)
            for part, a, b in parts:
                if part is Part.SEND:
                    a, b = a // PAGE * _SIZE, b // PAGE * _SIZE
                    block[here.start + a : here.start + b] = now[a:b]
        return parts
