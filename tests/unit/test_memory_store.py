"""The page store against a dictionary: whatever comes packed or not, in any order, a current page reads as it came last."""

from __future__ import annotations

import os
from collections.abc import Iterator

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mig.memory.frames import CHUNK, MAX_PAYLOAD, PAGE, Codec
from mig.memory.packing import PackingError
from mig.memory.store import PageStore

BASE = (256 << 10) - 4 * PAGE  # so that the lists of chunks meet inside
PAGES = 12


def contents(first: int, number: int, length: int) -> bytes:
    """So many pages, which tell their place and number."""
    return b"".join(bytes([number]) * (PAGE - 1) + bytes([first + n]) for n in range(length))


def packed(raw: bytes, codec: Codec) -> memoryview:
    return memoryview(zstandard.compress(raw) if codec is Codec.ZSTD else lz4.block.compress(raw, store_size=False))


def check(store: PageStore, model: dict[int, bytes], marked: set[int]) -> None:
    here = {n for start, end in store.current(0) for n in range((start - BASE) // PAGE, (end - BASE) // PAGE)}
    assert here == marked
    assert store.held == len(marked) * PAGE
    for n in marked:
        room = bytearray(PAGE)
        store.read(0, BASE + n * PAGE, memoryview(room))
        assert room == model[n]


span = st.integers(0, PAGES - 1).flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, PAGES)))
put = st.tuples(st.sampled_from(["raw", "lz4", "zstd"]), span)
other = st.tuples(st.sampled_from(["mark", "forget"]), span)


@given(st.lists(put, min_size=1, max_size=8), st.lists(span, max_size=4), st.lists(other, max_size=6), st.data())
def test_a_current_page_reads_as_it_came_last(
    puts: list[tuple[str, tuple[int, int]]], marks: list[tuple[int, int]], later: list[tuple[str, tuple[int, int]]], data: st.DataObject
) -> None:
    store, other = PageStore(), PageStore()
    model: dict[int, bytes] = {}
    marked: set[int] = set()
    for number, (how, (a, b)) in enumerate(puts, 1):
        raw = contents(a, number, b - a)
        if how == "raw":
            store.put(0, BASE + a * PAGE, memoryview(raw))
        else:
            codec = Codec.LZ4 if how == "lz4" else Codec.ZSTD
            store.put_packed(0, BASE + a * PAGE, len(raw), codec, packed(raw, codec))
        model |= {n: raw[(n - a) * PAGE : (n - a + 1) * PAGE] for n in range(a, b)}
    try:
        for a, b in marks:
            some = [n for n in range(a, b) if n in model]
            for n in some:
                store.mark(0, BASE + n * PAGE, BASE + (n + 1) * PAGE)
            marked |= set(some)
        check(store, model, marked)
        sealed = data.draw(st.integers(0, len(later)))
        for step, (what, (a, b)) in enumerate(later):
            if step == sealed:
                store.keep_current()
            if what == "forget":
                store.forget(0, BASE + a * PAGE, (b - a) * PAGE)
                marked -= set(range(a, b))
            check(store, model, marked)
        if sealed == len(later):
            store.keep_current()
        other.adopt(os.getpid())
        there = {n for start, end in other.current(0) for n in range((start - BASE) // PAGE, (end - BASE) // PAGE)}
        assert there >= marked, "a store that takes over has what was left"
        check(other, model, there)  # and what it has besides is true
    finally:
        store.close()
        other.close()


@pytest.fixture
def store() -> Iterator[PageStore]:
    s = PageStore()
    yield s
    s.close()


def used(kind: str) -> int:
    """Bytes that the store's files of one kind take."""
    fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.stat(f).st_blocks * 512 for f in fds if os.path.exists(f) and os.readlink(f).startswith(f"/memfd:mig-{kind}-"))


def test_memory_is_given_back_as_it_is_used(store: PageStore) -> None:
    """Chunks lie one behind the other, so that a page of the file may be that of two of them."""
    size, count = 16 * PAGE, 64
    for n in range(count):
        raw = os.urandom(size // 2) + bytes(size // 2)
        store.put_packed(0, n * size, size, Codec.ZSTD, packed(raw, Codec.ZSTD))
    assert count * size / 2 <= used("packed") <= count * size * 0.6
    store.mark(0, 0, count * size)
    for n in [*range(0, count, 2), *range(1, count, 2)]:
        store.forget(0, n * size, size)
    assert used("packed") <= PAGE and store.held == 0
    raw = os.urandom(4 * PAGE)
    store.put(0, 0, memoryview(raw))
    assert used("pages") == len(raw)
    store.keep_current()
    assert used("pages") == 0


def test_a_page_is_read_with_its_chunk(store: PageStore) -> None:
    """With as much of it as is current; one that came as it is with those beside it."""
    raw = contents(0, 1, 32)
    store.put_packed(0, BASE, len(raw), Codec.LZ4, packed(raw, Codec.LZ4))
    store.mark(0, BASE, BASE + 4 * PAGE)
    store.mark(0, BASE + 8 * PAGE, BASE + 40 * PAGE)
    assert store.around(0, BASE + 9 * PAGE) == [(BASE, BASE + 4 * PAGE), (BASE + 8 * PAGE, BASE + 32 * PAGE)]
    far = 1 << 30
    store.put(0, far, memoryview(contents(0, 2, 32)))
    store.mark(0, far, far + 32 * PAGE)
    assert store.around(0, far + 9 * PAGE) == [(far + CHUNK, far + 2 * CHUNK)]


def test_the_largest_chunk_and_one_that_is_damaged(store: PageStore) -> None:
    raw = contents(0, 3, 1) * (MAX_PAYLOAD // PAGE)
    store.put_packed(1, 0, len(raw), Codec.ZSTD, packed(raw, Codec.ZSTD))
    store.mark(1, 0, len(raw))
    store.keep_current()
    room = bytearray(len(raw))
    store.read(1, 0, memoryview(room))
    assert room == raw
    store.put_packed(2, 0, CHUNK, Codec.LZ4, memoryview(b"no such thing"))
    with pytest.raises(PackingError):
        store.read(2, 0, memoryview(bytearray(PAGE)))
