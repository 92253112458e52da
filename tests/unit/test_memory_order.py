"""Events that come in another order than the calls happened in."""

from __future__ import annotations

import random
from itertools import combinations

from mig.kernel.uffd import EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, Event
from mig.memory.order import overlap, settle
from mig.memory.ranges import Missing

X, Y, Z, N = 0x100000, 0x200000, 0x300000, 0x10000
UNMAP_X, Z_TO_X, X_TO_Y = Event(EVENT_UNMAP, X, X + N), Event(EVENT_REMAP, Z, X, N), Event(EVENT_REMAP, X, Y, N)


def at(*places: int) -> Missing:
    return Missing((p, p + N) for p in places)


def test_an_unmap_that_comes_late_does_not_take_what_moved_there() -> None:
    assert settle(at(X, Z), 1, [Z_TO_X, UNMAP_X], lambda s, a: X <= a < X + N) == [UNMAP_X, Z_TO_X]
    assert settle(at(Z), 1, [Z_TO_X, UNMAP_X], lambda s, a: X <= a < X + N) == [UNMAP_X, Z_TO_X]


def test_what_moved_there_and_was_unmapped_is_gone() -> None:
    assert settle(at(Z), 1, [Z_TO_X, UNMAP_X], lambda s, a: False) == [Z_TO_X, UNMAP_X]


def test_a_move_away_that_comes_late_takes_what_was_there_before() -> None:
    assert settle(at(X, Z), 1, [Z_TO_X, X_TO_Y], lambda s, a: X <= a < X + N or Y <= a < Y + N) == [X_TO_Y, Z_TO_X]
    assert settle(at(X), 1, [Z_TO_X, X_TO_Y], lambda s, a: X <= a < X + N or Y <= a < Y + N) == [X_TO_Y, Z_TO_X]


def test_two_moves_of_the_same_thing() -> None:
    assert settle(at(Z), 1, [Z_TO_X, X_TO_Y], lambda s, a: Y <= a < Y + N) == [Z_TO_X, X_TO_Y]


def test_a_discard_stays_in_its_place() -> None:
    discard = Event(EVENT_REMOVE, X, X + N)
    assert settle(at(Z), 1, [Z_TO_X, discard], lambda s, a: True) == [Z_TO_X, discard]


def test_a_child_born_after_a_move_that_is_told_of_later() -> None:
    fork = Event(EVENT_FORK, 7)
    assert settle(at(Z), 1, [fork, Z_TO_X], lambda s, a: X <= a < X + N) == [Z_TO_X, fork]
    assert settle(at(Z), 1, [fork, Z_TO_X], lambda s, a: X <= a < X + N if s == 1 else Z <= a < Z + N) == [fork, Z_TO_X]


def test_a_child_that_has_ended_says_nothing_of_its_parent() -> None:
    fork = Event(EVENT_FORK, 7)
    for told in ([Z_TO_X, UNMAP_X, fork], [fork, Z_TO_X, UNMAP_X], [Z_TO_X, fork, UNMAP_X]):
        happened = settle(at(Z), 1, told, lambda s, a: s == 1 and X <= a < X + N)
        assert [e for e in happened if e != fork] == [UNMAP_X, Z_TO_X]


def test_children_keep_their_order_and_other_calls_their_place() -> None:
    one, two = Event(EVENT_FORK, 7), Event(EVENT_FORK, 8)
    unmap_y = Event(EVENT_UNMAP, Y, Y + N)
    has = {1: (), 7: (X, Y), 8: (Y,)}  # what each of the three had registered when it was born, or has now
    for told in ([UNMAP_X, one, two, unmap_y], [one, two, UNMAP_X, unmap_y], [unmap_y, UNMAP_X, one, two]):
        happened = settle(at(X, Y), 1, told, lambda s, a: any(p <= a < p + N for p in has[s]))
        assert happened == [one, UNMAP_X, two, unmap_y]


def test_the_outcome_is_that_of_the_true_order_however_it_is_told() -> None:
    for seed in range(300):
        one_outcome(seed)


def one_outcome(seed: int) -> None:
    """Calls of threads that use each other's freed addresses at once, told in any order."""
    chance = random.Random(seed)
    slots = [k * 0x100000 for k in range(1, 6)]
    mapped = set(chance.sample(slots, 3))
    missing = Missing((s, s + N) for s in mapped)
    truth, true_events = missing.copy(), []
    for _ in range(chance.randint(2, 3)):
        if mapped and chance.random() < 0.5:
            s = chance.choice(sorted(mapped))
            mapped.remove(s)
            truth.drop(s, s + N)
            true_events.append(Event(EVENT_UNMAP, s, s + N))
        elif mapped and (free := sorted(set(slots) - mapped)):
            s, to = chance.choice(sorted(mapped)), chance.choice(free)
            mapped = mapped - {s} | {to}
            truth.move(s, to, N)
            true_events.append(Event(EVENT_REMAP, s, to, N))
    chains = any(  # one thread's calls, or calls ordered by the guest itself, come in order
        a.kind == EVENT_REMAP and overlap(Event(EVENT_UNMAP, a.b, a.b + N), b) for a, b in combinations(true_events, 2)
    )
    told = true_events[:]
    if not chains:
        chance.shuffle(told)
    for e in settle(missing, 1, told, lambda s, a: any(m <= a < m + N for m in mapped)):
        if e.kind == EVENT_UNMAP:
            missing.drop(e.a, e.b)
        else:
            missing.move(e.a, e.b, e.n)
    assert list(missing) == list(truth), seed
