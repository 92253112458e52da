"""What one terminal added to the output is taken away again before another adds it, however the writes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mig.channels.frames import FrameError
from mig.channels.tty_modes import Modes, strip_cr, stripped_length

texts = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n"]), max_size=40).map(b"".join)


@given(texts)
def test_stripping_undoes_onlcr(text: bytes) -> None:
    assert strip_cr(text.replace(b"\n", b"\r\n")) == text


@given(texts, st.data())
def test_a_short_write_stands_for_a_beginning_of_the_data(text: bytes, data: st.DataObject) -> None:
    data_to_write = text.replace(b"\n", b"\r\n")
    written = data.draw(st.integers(0, len(strip_cr(data_to_write))))
    done = stripped_length(data_to_write, written)
    rest = data_to_write[done:]
    assert strip_cr(data_to_write)[:written] + strip_cr(rest) == strip_cr(data_to_write)


def test_modes_travel() -> None:
    modes = Modes(1, 2, 3, 4, bytes(range(19)))
    assert Modes.unpack(modes.pack()) == modes
    with pytest.raises(FrameError):
        Modes.unpack(b"short")
