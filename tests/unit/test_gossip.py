"""Seals: what is not ours, damaged or repeated is refused."""

from __future__ import annotations

import pytest
from nacl.secret import SecretBox
from omdiscd.seal import MAX_DATAGRAM, Seal, SealError

KEY = b"k" * 32


# -- seals ----------------------------------------------------------------------------------------------------------------------------


def test_a_seal_opens_once() -> None:
    a, b = Seal(KEY, 1, 1), Seal(KEY, 2, 1)
    d = a.seal({"n": []})
    assert b.open(d)["f"] == 1
    with pytest.raises(SealError, match="before"):
        b.open(d)
    b.open(a.seal({"n": []}))


def test_a_restarted_sender_is_believed_and_its_former_life_is_not() -> None:
    old, new, b = Seal(KEY, 1, 1), Seal(KEY, 1, 2), Seal(KEY, 2, 1)
    stale = old.seal({})
    b.open(new.seal({}))
    with pytest.raises(SealError):
        b.open(stale)


@pytest.mark.parametrize("damage", ["key", "bit", "short", "long", "bare"])
def test_what_is_not_ours_is_refused(damage: str) -> None:
    a, b = Seal(KEY, 1, 1), Seal(KEY, 2, 1)
    d = bytearray(a.seal({"n": []}))
    if damage == "key":
        d = bytearray(Seal(bytes(32), 1, 1).seal({}))
    elif damage == "bit":
        d[-1] ^= 1
    elif damage == "short":
        d = d[:20]
    elif damage == "long":
        d = d + bytes(MAX_DATAGRAM)
    else:
        d = bytearray(b"m2" + SecretBox(KEY).encrypt(b"\xc1"))
    with pytest.raises(SealError):
        b.open(bytes(d))


def test_datagrams_have_a_limit() -> None:
    with pytest.raises(ValueError):
        Seal(KEY, 1, 1).seal({"x": "y" * MAX_DATAGRAM})
