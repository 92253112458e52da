"""What one node keeps of a large pool, against the plain way to say the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mig.model import NodeInfo
from mig.pool.message import ALIVE, DEAD, LEFT, SUSPECT, Rumor
from mig.pool.rumors import Rumors
from mig.pool.table import Table


class PlainRumors:
    """Sorts at each call."""

    def __init__(self) -> None:
        self.rumors: dict[int, Rumor] = {}
        self.told: dict[int, int] = {}
        self.since: dict[int, int] = {}
        self.clock = 0

    def add(self, r: Rumor) -> None:
        if self.told.get(r.id) != 0:
            self._wait(r.id)
        self.rumors[r.id], self.told[r.id] = r, 0

    def forget(self, node: int) -> None:
        self.rumors.pop(node, None)
        self.told.pop(node, None)

    def take(self, room: int, limit: int) -> list[Rumor]:
        chosen = sorted(self.rumors, key=lambda i: (self.told[i], self.since[i]))[:room]
        out = [self.rumors[i] for i in chosen]
        for i in chosen:
            self.told[i] += 1
            self._wait(i)
            if self.told[i] >= limit:
                self.forget(i)
        return out

    def _wait(self, node: int) -> None:
        self.clock += 1
        self.since[node] = self.clock


_IDS = st.integers(1, 30)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), _IDS, st.integers(0, 9)),
        st.tuples(st.just("forget"), _IDS, st.just(0)),
        st.tuples(st.just("take"), st.integers(0, 12), st.integers(1, 5)),
    ),
    max_size=300,
)


@given(_STEPS)
@settings(deadline=None)
def test_rumours_are_taken_as_if_they_were_sorted_each_time(steps: list[tuple[str, int, int]]) -> None:
    ours, plain = Rumors(), PlainRumors()
    for what, a, b in steps:
        if what == "add":
            ours.add(Rumor(a, b, ALIVE, 99))
            plain.add(Rumor(a, b, ALIVE, 99))
        elif what == "forget":
            ours.forget(a)
            plain.forget(a)
        else:
            assert ours.take(a, b) == plain.take(a, b)
        assert len(ours) == len(plain.rumors)


def test_a_rumour_that_changes_all_the_time_is_told_too() -> None:
    ours = Rumors()
    for n in range(10):
        ours.add(Rumor(n, 1, ALIVE, 99))
    told = set()
    for n in range(10):
        ours.add(Rumor(9, 2 + n, ALIVE, 99))
        told |= {r.id for r in ours.take(1, 9)}
    assert told == set(range(10))
    assert len(ours) == 10


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), _IDS, st.just(0)),
            st.tuples(st.just("state"), _IDS, st.sampled_from([ALIVE, SUSPECT, DEAD, LEFT])),
            st.tuples(st.just("forget"), _IDS, st.just(0)),
            st.tuples(st.just("keep"), st.just(0), st.just(0)),
        ),
        max_size=200,
    )
)
@settings(deadline=None)
def test_who_is_up_is_what_the_columns_say_and_what_was_lent_stays(steps: list[tuple[str, int, int]]) -> None:
    t = Table()
    lent: list[tuple[list[int], list[int]]] = []
    for what, node, state in steps:
        if what == "put":
            t.put(NodeInfo(node, f"n{node}", f"10.0.0.{node}", incarnation=1))
        elif what == "keep":
            up = t.up_as_it_is()
            lent.append((up, list(up)))
        elif not t.knows(node):
            continue
        elif what == "state":
            t.set_state(node, state)
        else:
            t.forget(node)
        assert t.up() == sorted(i for i in t.ids if t.states[i] <= SUSPECT)
        assert t.size() == len(t.up()) + 1
    for up, was in lent:
        assert up == was
