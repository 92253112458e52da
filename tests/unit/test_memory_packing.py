"""Chunks come out as they went in, bombs are refused, and packing happens where the arithmetic says that it pays."""

from __future__ import annotations

import random

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mig.memory.frames import PAGE, Codec
from mig.memory.packing import Chooser, Packer, PackingError, Unpacker, pack_best

RANDOM = random.Random(1).randbytes(64 << 10)
TEXT = b"".join(b"object %08d refers to %08d;" % (i, i * 7) for i in range(3000))[: 64 << 10]


@given(st.binary(min_size=1, max_size=5000), st.sampled_from(Codec))
def test_round_trip(chunk: bytes, codec: Codec) -> None:
    assert bytes(Unpacker().unpack(Packer().pack(memoryview(chunk), codec), codec, len(chunk))) == chunk


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_a_chunk_that_unpacks_to_more_or_less_than_announced_is_refused(codec: Codec) -> None:
    packed = Packer().pack(bytes(1 << 20), codec)
    for length in (PAGE, (1 << 20) - 1, 2 << 20):
        with pytest.raises(PackingError):
            Unpacker().unpack(packed, codec, length)


@given(st.binary(max_size=300), st.sampled_from(Codec))
def test_nonsense_is_refused_or_has_the_announced_length(payload: bytes, codec: Codec) -> None:
    try:
        out = Unpacker().unpack(payload, codec, PAGE)
    except PackingError:
        return
    assert len(out) == PAGE


def test_a_frame_of_zstd_without_its_size_is_refused() -> None:
    c = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    with pytest.raises(PackingError):
        Unpacker().unpack(c.compress(bytes(PAGE)) + c.flush(), Codec.ZSTD, PAGE)


def measured(link: float, lz4_at: tuple[float, float], zstd_at: tuple[float, float], *, free_core: bool) -> Codec:
    """What is chosen; (speed in bytes/s, ratio) of each codec."""
    c = Chooser(free_core=free_core)
    c.sent(1 << 20, (1 << 20) / link, 10.0)
    for codec, (speed, ratio) in ((Codec.LZ4, lz4_at), (Codec.ZSTD, zstd_at)):
        c.codecs[codec].note(1 << 20, int((1 << 20) / ratio), (1 << 20) / speed)
    return c.best()


def test_what_pays() -> None:
    heap = ((1.6e9, 4.1), (1.1e9, 11.0))  # a Python heap, one core
    binaries = ((0.65e9, 1.7), (0.42e9, 2.3))
    noise = ((7e9, 1.0), (8e9, 1.0))
    gigabit, ten = 0.118e9, 1.2e9
    assert measured(gigabit, *heap, free_core=True) == Codec.ZSTD
    assert measured(gigabit, *binaries, free_core=True) == Codec.ZSTD
    assert measured(gigabit, *noise, free_core=True) == Codec.RAW
    assert measured(ten, *heap, free_core=True) == Codec.LZ4
    assert measured(ten, *heap, free_core=False) == Codec.RAW
    assert measured(ten, *binaries, free_core=False) == Codec.RAW
    assert measured(12e9, *heap, free_core=True) == Codec.RAW


def test_the_rate_of_the_link() -> None:
    c = Chooser(free_core=True)
    now = 0.0
    for _ in range(100):  # buffers swallow the first chunks, then each waits for the wire
        now += 0.01
        c.sent(100_000, 0.009, now)
    assert 9e6 < c.link < 11e6
    for _ in range(100):  # packed by now: it is packing that takes the time
        now += 0.01
        c.sent(20_000, 0.0001, now)
    assert 9e6 < c.link < 11e6
    for _ in range(1000):
        now += 0.01
        c.sent(1_000_000, 0.0, now)
    assert c.link > 90e6
    assert Chooser(free_core=True, limit=1e6).link == 1e6


def test_before_the_link_is_known_nothing_is_packed_then_each_codec_is_tried_once() -> None:
    c, p = Chooser(free_core=True), Packer()
    assert pack_best(p, c, TEXT)[0] == Codec.RAW
    c.sent(1 << 20, 0.01, 10.0)
    assert [pack_best(p, c, TEXT)[0] for _ in range(2)] == [Codec.LZ4, Codec.ZSTD]
    assert all(m.known and m.ratio > 2 for m in c.codecs.values())


def test_what_does_not_get_smaller_goes_as_it_is_and_other_codecs_are_tried_now_and_then() -> None:
    c, p = Chooser(free_core=True), Packer()
    c.sent(1 << 20, 0.01, 10.0)
    used = [(c.next(), pack_best(p, c, RANDOM)) for _ in range(200)]
    assert all(codec == Codec.RAW and chunk is RANDOM for _, (codec, chunk) in used)
    for _ in range(200):
        pack_best(p, c, TEXT)
    assert c.best() != Codec.RAW  # the memory changed its kind, and that was noticed


def test_lz4_bomb() -> None:
    with pytest.raises(PackingError):
        Unpacker().unpack(lz4.block.compress(bytes(8 << 20), store_size=False), Codec.LZ4, PAGE)
