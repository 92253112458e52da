"""What the store holds is told from what it does not, page by page, and the push connection says so of this process's own memory."""

from __future__ import annotations

import mmap
import os
import random
import socket
from collections.abc import Iterator
from ctypes import addressof, c_char

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.memory.fingerprints import Fingerprints, Part
from mig.memory.frames import PAGE, Kind, Range
from mig.memory.packing import Unpacker
from mig.memory.pusher import Memory, Pusher
from mig.memory.sender import Sender
from mig.memory.stream import Stream

pages = st.lists(st.integers(0, 3), min_size=1, max_size=12)
BASE = 510 * PAGE  # so that a block ends in between


def contents(numbers: list[int]) -> bytes:
    """Pages of which those of number 0 hold nothing; the others differ in their last byte."""
    return b"".join(bytes(PAGE - 1) + bytes([n]) for n in numbers)


@given(pages, pages, st.integers(0, 3))
def test_a_page_is_the_same_only_if_it_was_sent_so(sent: list[int], now: list[int], shift: int) -> None:
    known = Fingerprints()
    store: dict[int, int] = {}
    for part, a, b in known.split(1, BASE, contents(sent), keep=True):
        assert part is (Part.ZERO if sent[a // PAGE] == 0 else Part.SEND)
        store |= {n: sent[n] for n in range(a // PAGE, b // PAGE) if part is Part.SEND}
    assert all(part is not Part.SAME for part, _, _ in known.split(2, BASE, contents(sent))), "of another process"
    at = 0
    for part, a, b in known.split(1, BASE + shift * PAGE, contents(now)):
        assert a == at and b > a
        at = b
        for n in range(a // PAGE, b // PAGE):
            here = store.get(n + shift)
            assert part is (Part.ZERO if now[n] == 0 else Part.SAME if here == now[n] else Part.SEND)
    assert at == len(now) * PAGE
    same = known.compare(1, BASE + shift * PAGE, contents(now))
    assert same == [None if n + shift not in store else store[n + shift] == x for n, x in enumerate(now)]


def test_looking_keeps_nothing() -> None:
    known = Fingerprints()
    assert known.split(0, 0, contents([1, 2])) == known.split(0, 0, contents([1, 2])) == [(Part.SEND, 0, 2 * PAGE)]
    assert known.split(0, 0, contents([1]), keep=True) == [(Part.SEND, 0, PAGE)]
    assert known.split(0, 0, contents([1, 2])) == [(Part.SAME, 0, PAGE), (Part.SEND, PAGE, 2 * PAGE)]


class Block:
    """Pages of this process, and the push connection of a page source that serves them."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._first = c_char.from_buffer(self.map)
        self.start = addressof(self._first)
        self.end = self.start + size * PAGE
        fds = [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("mem", "pagemap")]
        self.memory = Memory(fds[0], fds[1], [(self.start, self.end)], {})
        self.here, there = socket.socketpair()
        there.setblocking(False)
        self.there = Stream(there)
        self.known = Fingerprints()
        self.push = Pusher(Sender(self.here), self.known, {0: self.memory})

    def sent(self, *pieces: tuple[int, int]) -> tuple[bool, dict[int, bytes], set[int], set[int]]:
        """Push pages ``[a, b)`` of the block: what came of each page, those told to be in the store, those told to be zero."""
        any_sent = self.push.send([Range(0, self.start + a * PAGE, self.start + b * PAGE) for a, b in pieces])
        data: dict[int, bytes] = {}
        notes: dict[Kind, set[int]] = {Kind.STORED: set(), Kind.ZERO: set()}
        for f in self.there.frames():
            page = (f.addr - self.start) // PAGE
            if f.kind is Kind.DATA:
                whole = bytes(Unpacker().unpack(f.payload, f.codec, f.length))
                data |= {page + n: whole[n * PAGE : (n + 1) * PAGE] for n in range(f.length // PAGE)}
            else:
                notes[f.kind] |= set(range(page, page + f.length))
        return any_sent, data, notes[Kind.STORED], notes[Kind.ZERO]

    def close(self) -> None:
        self.memory.close()
        self.here.close()
        self.there.close()
        del self._first


@pytest.fixture
def block() -> Iterator[Block]:
    b = Block(32)
    yield b
    b.close()


def test_what_is_pushed_of_a_chunk_is_what_the_store_has_not(block: Block) -> None:
    """Changed pages go, equal ones are told of, also those between the pieces; of those in between nothing else is said."""
    noise = random.Random(1).randbytes(32 * PAGE)
    block.map[:] = noise
    block.known.split(0, block.start, noise[: 16 * PAGE], keep=True)
    block.map[3 * PAGE] = noise[3 * PAGE] ^ 1
    block.map[5 * PAGE] = noise[5 * PAGE] ^ 1
    block.map[6 * PAGE : 7 * PAGE] = bytes(PAGE)
    block.map[9 * PAGE : 10 * PAGE] = bytes(PAGE)
    some, data, stored, zero = block.sent((0, 5), (7, 8), (9, 12))
    assert some and set(data) == {3} and data[3] == block.map[3 * PAGE : 4 * PAGE]
    assert stored == {0, 1, 2, 4, 7, 8, 10, 11} and zero == {9}
    assert block.push.bytes > PAGE and block.push.zeros == PAGE
    assert block.sent((12, 16))[::2] == (False, {12, 13, 14, 15}), "nothing had to be sent"
    some, data, stored, zero = block.sent((15, 16), (30, 32))  # too far from each other to be read as one
    assert set(data) == {30, 31} and stored == {15} and data[31] == noise[31 * PAGE :]


def test_a_page_saved_from_its_exit_is_pushed_as_it_was(block: Block) -> None:
    block.map[:] = noise = random.Random(2).randbytes(32 * PAGE)
    block.known.split(0, block.start, noise, keep=True)
    block.map[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    block.memory.saved[block.start + 2 * PAGE] = noise[2 * PAGE : 3 * PAGE]
    assert block.sent((1, 4)) == (False, {}, {1, 2, 3}, set())
