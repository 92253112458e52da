"""The channel's frames survive any cutting, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.channels.frames import MAX_PAYLOAD, Decoder, Frame, FrameError, Kind, encode, number

some_frames = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300)), max_size=8)


@given(some_frames, st.integers(1, 50))
def test_frames_survive_any_cutting(frames: list[tuple[Kind, bytes]], piece: int) -> None:
    stream = b"".join(encode(k, p) for k, p in frames)
    decoder, got = Decoder(), []
    for i in range(0, len(stream), piece):
        got += decoder.feed(stream[i : i + piece])
    assert got == [Frame(k, p) for k, p in frames]


@pytest.mark.parametrize("junk", [b"\x01\xff\xff\xff\xff", b"\x00\x00\x00\x00\x00", b"\xc8\x01\x00\x00\x00x"])
def test_nonsense_is_refused(junk: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(junk)


def test_limits() -> None:
    with pytest.raises(ValueError):
        encode(Kind.DATA, bytes(MAX_PAYLOAD + 1))
    assert Frame(Kind.CREDIT, number(7)).number == 7
    with pytest.raises(FrameError):
        _ = Frame(Kind.CREDIT, b"abc").number
