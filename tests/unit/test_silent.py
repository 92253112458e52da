"""Clients of the control socket that make no request are named; whoever asks something is not."""

from __future__ import annotations

import pytest
from omdiscd.silent import Client, Silent

from mig.tasks import until_beat


def test_who_leaves_without_a_request_is_silent() -> None:
    s = Silent()
    client = Client(77, 1000, 100.0)
    s.came(5, client)
    assert s.stays(5, client)
    assert s.went(5) is client
    assert s.went(5) is None and not s.stays(5, client)


@pytest.mark.parametrize("asked", [98.0, 100.0, 130.0])
def test_who_asks_is_not_even_when_the_news_of_its_connection_comes_later(asked: float) -> None:
    s = Silent()
    client = Client(77, 1000, 100.0)
    s.came(5, client)
    s.asked(77, asked)
    assert not s.stays(5, client) and s.went(5) is None


def test_an_earlier_connection_of_the_same_process_does_not_speak_for_this_one() -> None:
    s = Silent()
    s.asked(77, 10.0)
    client = Client(77, 1000, 100.0)
    s.came(5, client)
    assert s.went(5) is client


def test_a_number_that_was_used_again_is_another_connection() -> None:
    s = Silent()
    first, second = Client(77, 1000, 100.0), Client(78, 1000, 101.0)
    s.came(5, first)
    s.went(5)
    s.came(5, second)
    assert not s.stays(5, first) and s.stays(5, second)


def test_memory_of_those_who_asked_is_bounded() -> None:
    s = Silent()
    for pid in range(5000):
        s.asked(pid, float(pid))
    assert len(s._asked) == 1024


def test_parts_that_look_equally_often_look_together() -> None:
    for now in (0.0, 0.31, 12.3499, 12.35, 1e6 + 0.77):
        ends = {round(now + until_beat(now, i), 6) % i for i in (0.5, 1.0, 4.0)}
        assert all(min(e, 0.5 - e % 0.5) < 1e-4 for e in ends)
        assert all(i / 8 < until_beat(now, i) <= i * 9 / 8 for i in (0.5, 1.0, 4.0))
