"""The bookkeeping of missing pages against a model that keeps every page by itself."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from mig.memory.ranges import Missing, Piece, Spaces, join, subtract

PAGE = 4096
TOP = 40  # pages of the address space: small, so that everything overlaps with everything
page = st.integers(0, TOP)
length = st.integers(1, 12)


class Model(RuleBasedStateMachine):
    """Random events on spaces of one family; the model is a dictionary page -> source page for each."""

    spaces = Bundle("spaces")

    def __init__(self) -> None:
        super().__init__()
        self.real = Spaces()
        self.model: dict[int, dict[int, int]] = {}
        self.next = 1

    def known(self, space: int) -> bool:
        return space in self.model

    @rule(target=spaces, ranges=st.lists(st.tuples(page, length), max_size=4))
    def restored(self, ranges: list[tuple[int, int]]) -> int:
        space, self.next = self.next, self.next + 1
        self.real.open(space, [(a * PAGE, (a + n) * PAGE) for a, n in ranges])
        self.model[space] = {p: p for a, n in ranges for p in range(a, a + n)}
        return space

    @rule(target=spaces, space=spaces)
    def forked(self, space: int) -> int:
        child, self.next = self.next, self.next + 1
        if self.known(space):
            self.real.fork(space, child)
            self.model[child] = dict(self.model[space])
        return child

    @rule(space=spaces, a=page, n=length, arrived=st.booleans())
    def dropped(self, space: int, a: int, n: int, arrived: bool) -> None:
        if self.known(space):
            (self.real.arrived if arrived else self.real.remove)(space, a * PAGE, (a + n) * PAGE)
            for p in range(a, a + n):
                self.model[space].pop(p, None)

    @rule(space=spaces, old=page, new=page, n=length)
    def moved(self, space: int, old: int, new: int, n: int) -> None:
        if self.known(space) and abs(old - new) >= n:  # the kernel refuses an overlap
            self.real.remap(space, old * PAGE, new * PAGE, n * PAGE)
            m = self.model[space]
            taken = {p: m.pop(p) for p in range(old, old + n) if p in m}
            for p in range(new, new + n):
                m.pop(p, None)
            m.update({p - old + new: s for p, s in taken.items()})

    @rule(space=spaces)
    def ended(self, space: int) -> None:
        self.real.close(space)
        self.model.pop(space, None)

    @rule(a=page, n=length)
    def sent(self, a: int, n: int) -> None:
        """A chunk of the source's memory arrives and is placed wherever it is missing."""
        wanted = self.real.wanted(a * PAGE, (a + n) * PAGE)
        assert wanted == join((s * PAGE, (s + 1) * PAGE) for m in self.model.values() for s in m.values() if a <= s < a + n)
        for place in self.real.places(a * PAGE, (a + n) * PAGE):
            for k in range((place.end - place.start) // PAGE):
                assert self.model[place.space].pop(place.start // PAGE + k) == place.source // PAGE + k
            self.real.arrived(place.space, place.start, place.end)
        assert not any(a <= s < a + n for m in self.model.values() for s in m.values())

    @invariant()
    def same(self) -> None:
        assert set(self.real.missing) == set(self.model)
        for space, m in self.model.items():
            real = self.real.missing[space]
            assert real.bytes == len(m) * PAGE and bool(real) == bool(m)
            pieces = list(real)
            assert {p.start + k: p.source + k for p in pieces for k in range(0, p.end - p.start, PAGE)} == {
                p * PAGE: s * PAGE for p, s in m.items()
            }
            assert all(a.end <= b.start for a, b in pairwise(pieces))
            for p in range(TOP + 12):
                found = self.real.find(space, p * PAGE, 3 * PAGE)
                assert (found.source // PAGE if found else None) == m.get(p)
                if found:
                    assert found.start == p * PAGE and PAGE <= found.end - found.start <= 3 * PAGE
        assert self.real.left() == join((s * PAGE, (s + 1) * PAGE) for m in self.model.values() for s in m.values())
        assert bool(self.real) == any(self.model.values())


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_moved_twice_comes_from_where_it_was_at_the_source() -> None:
    m = Missing([(0x10000, 0x20000)])
    m.move(0x14000, 0x50000, 0x4000)
    m.move(0x51000, 0x90000, 0x1000)
    assert m.find(0x90000) == Piece(0x90000, 0x91000, 0x15000)
    assert m.places(0x15000, 0x16000) == [Piece(0x90000, 0x91000, 0x15000)]
    assert m.find(0x51000) is None
    assert m.bytes == 0x10000
    m.move(0x90000, 0x15000, 0x1000)  # home again: one piece with no shift
    assert m.find(0x15000) == Piece(0x15000, 0x16000, 0x15000)


def test_sets_of_ranges() -> None:
    assert join([(8, 9), (1, 3), (3, 5), (4, 4)]) == [(1, 5), (8, 9)]
    assert subtract([(0, 10), (20, 30)], [(2, 4), (9, 22)]) == [(0, 2), (4, 9), (22, 30)]
