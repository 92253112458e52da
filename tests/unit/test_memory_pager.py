"""What a pager asks of a source that has forgotten, or that is another one."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mig.memory import frames
from mig.memory import pager as pagers
from mig.memory.eventlog import EventLog
from mig.memory.frames import PAGE, Kind
from mig.memory.pager import Pager

AREA = (0x10000000, 0x10000000 + 64 * PAGE)


@pytest.fixture
def pager() -> Iterator[Pager]:
    """One whose guest misses all of an area of 64 pages; the number of its userfaultfd is never used."""
    p = Pager(None, lambda op, **m: None, lambda: None, EventLog())
    p.guest.layout([(0, 4711, [AREA])])
    p.guest.spaces[0].open(999, [AREA])
    yield p
    p.store.close()
    p.poll.close()


def pages(first: int, last: int) -> tuple[int, int]:
    """The range of pages ``first`` to ``last`` of the area."""
    return AREA[0] + first * PAGE, AREA[0] + (last + 1) * PAGE


def test_what_the_store_has_is_not_asked_for_again(pager: Pager) -> None:
    """Pages that came before the freeze and are current, in several pieces; those that are not current are asked for."""
    assert pager.missing_ranges() == [(0, *AREA)]
    for first, last in ((0, 9), (20, 29)):
        start, end = pages(first, last)
        pager.store.put(0, start, memoryview(bytes(end - start)))
    pager.store.put(0, pages(50, 50)[0], memoryview(bytes(PAGE)))
    pager.store.mark(0, *pages(0, 9))
    pager.store.mark(0, *pages(20, 29))
    assert pager.missing_ranges() == [(0, *pages(10, 19)), (0, *pages(30, 63))]
    pager.guest.spaces[0].arrived(999, *pages(30, 60))
    assert pager.missing_ranges() == [(0, *pages(10, 19)), (0, *pages(61, 63))]


def test_more_ranges_than_a_message_holds_become_whole_areas(pager: Pager, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes twice is dropped."""
    monkeypatch.setattr(pagers, "MANY", 8)
    for n in range(0, 64, 4):
        pager.guest.spaces[0].arrived(999, *pages(n, n))
    assert pager.missing_ranges() == [(0, *AREA)]


def test_a_page_that_somebody_waits_for_is_placed_between_notes(pager: Pager, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read gives thousands of notes; what has come on the other connection does not wait for the last of them."""
    told, placed_after = [0], list[int]()
    monkeypatch.setattr(pager.store, "mark", lambda *_: told.__setitem__(0, told[0] + 1))
    monkeypatch.setattr(pager, "_place", lambda *_: placed_after.append(told[0]))
    (demand, demand_far), (push, push_far) = (socket.socketpair() for _ in range(2))
    with demand_far, push_far:
        pager.connected(demand, push)
        push_far.sendall(b"".join(frames.note(Kind.STORED, 0, *pages(n % 64, n % 64)) for n in range(1000)))
        demand_far.sendall(frames.data(Kind.DATA, 0, AREA[0], PAGE) + bytes(PAGE))
        pager.step([push.fileno()])
        assert told == [1000] and placed_after == [pagers.FRAMES]
        for stream in (demand, push):
            stream.close()
