"""The order of pushing: everything exactly once, behind the faults first, then what is hot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mig.memory.frames import Range
from mig.memory.push import PIECES, PushOrder
from mig.memory.ranges import join
from mig.memory.todo import Todo

PAGE = 4096
MIB = 1 << 20
ranges = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)).map(lambda r: (r[0] * PAGE, (r[0] + r[1]) * PAGE)), max_size=8)


@given(left=ranges, hot=st.lists(ranges, max_size=3), faults=st.lists(st.integers(0, 240), max_size=30), data=st.data())
def test_every_page_is_given_out_exactly_once(
    left: list[tuple[int, int]], hot: list[list[tuple[int, int]]], faults: list[int], data: st.DataObject
) -> None:
    order = PushOrder(left, hot)
    want = {p for a, b in left for p in range(a, b, PAGE)}
    got: set[int] = set()
    while True:
        assert order.bytes == len(want - got) * PAGE
        if faults and data.draw(st.booleans()):
            page = faults.pop() * PAGE
            order.demanded(page)
            if page in want:
                got.add(page)
            continue
        chunk = order.next()
        if not chunk:
            break
        pages = [p for a, b in chunk for p in range(a, b, PAGE)]
        assert len(pages) * PAGE <= order.chunk and len(chunk) <= PIECES and chunk == join(chunk)
        assert not got & set(pages) and want.issuperset(pages)
        got.update(pages)
    assert got == want


def test_behind_a_fault_comes_before_all_else() -> None:
    order = PushOrder([(0, 64 * MIB)], [[(0, 8 * MIB)]])
    assert order.next()[0][0] == 0
    order.demanded(40 * MIB)
    assert order.next() == [(40 * MIB + PAGE, 40 * MIB + PAGE + order.chunk)]
    assert order.next()[0][0] < 8 * MIB  # one chunk, then what is hot again


def test_a_sequential_reader_is_led_further_each_time() -> None:
    order = PushOrder([(0, 64 * MIB)], [[(0, 4 * MIB)]])  # the hot pages are elsewhere: whatever comes behind a fault was meant for it
    at, widths = 8 * MIB, []
    for _ in range(8):
        order.demanded(at)
        sent = PAGE
        while (chunk := order.next())[0][0] == at + sent:
            sent = chunk[-1][1] - at
        widths.append(sent - PAGE)
        at += sent
    assert widths == [order.chunk * n for n in (1, 2, 4, 8, 16, 16, 16, 16)]


def test_hot_pages_come_in_the_order_of_the_last_rounds() -> None:
    order = PushOrder([(0, 4 * MIB)], [[(3 * MIB, 4 * MIB)], [(2 * MIB, 4 * MIB)]])
    seen = []
    while chunk := order.next():
        seen.append(chunk[0][0] // MIB)
    assert list(dict.fromkeys(seen)) == [3, 2, 0, 1]


def test_without_a_hint_it_goes_on_from_the_last_fault_and_round_the_corner() -> None:
    order = PushOrder([(0, 2 * MIB)])
    order.demanded(MIB)
    starts = []
    while chunk := order.next():
        starts.append(chunk[0][0])
    assert starts[0] == MIB + PAGE and starts.index(0) == len([s for s in starts if s > MIB])


@given(ranges, ranges, st.lists(st.tuples(st.sampled_from([0, 3, 4]), st.integers(0, 240), st.booleans()), max_size=40))
def test_several_processes(left: list[tuple[int, int]], hot: list[tuple[int, int]], others: list[tuple[int, int, bool]]) -> None:
    todo = Todo([Range(i, a, b) for i in (0, 3) for a, b in join(left)], [Range(3, a, b) for a, b in hot])
    want = {(i, p) for i in (0, 3) for a, b in left for p in range(a, b, PAGE)}
    while want:
        assert todo.bytes == len(want) * PAGE
        if others:
            process, page, more = others.pop()
            todo.fault(process, page * PAGE)
            want.discard((process, page * PAGE))
            if more:
                continue
        chunk = todo.take()
        if not chunk:
            break
        pages = {(r.process, p) for r in chunk for p in range(r.start, r.end, PAGE)}
        assert pages <= want
        want -= pages
    assert not want and not todo.take()
