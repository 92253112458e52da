"""In which order a guest's overlapping calls really happened, when the kernel tells of them in another.  Pure.

``munmap``, ``mremap`` and ``fork`` queue their event after they have let go of the address space.  A thread that is held up in between can
have the address that it freed given to another thread's ``mremap``, whose event then comes first; taken as they come, the late
``UNMAP`` would throw away pages that are still wanted (seen: zeros where data was, after some hundred thousand calls of four threads).

The kernel lets no page be placed while such a call is between the two, so a pager waits for a moment at which none is, and what it has read
by then is a complete batch.  Of the orders in which a batch can have happened, those are out that leave pages missing where nothing is
registered now, or that move something onto what was still there; of the others, the one that gives up the fewest pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, permutations

from mig.kernel import uffd
from mig.kernel.uffd import Event
from mig.memory.ranges import Missing

MOST = 5
"""Overlapping events of which all orders are tried; of more, only those with one event out of its place."""

Registered = Callable[[int, int], bool]
"""Whether an address (second) of a space (first) can have missing pages now."""


def touches(e: Event) -> list[tuple[int, int]]:
    """The ranges that an event is about; a fork is about everything."""
    match e.kind:
        case uffd.EVENT_REMOVE | uffd.EVENT_UNMAP:
            return [(e.a, e.b)]
        case uffd.EVENT_REMAP:
            return [(e.a, e.a + e.n), (e.b, e.b + e.n)]
    return [(0, 1 << 64)]


def overlap(one: Event, other: Event) -> bool:
    """Whether the order of the two makes a difference."""
    return any(a < d and c < b for a, b in touches(one) for c, d in touches(other))


def settle(missing: Missing, space: int, events: Sequence[Event], registered: Registered) -> list[Event]:
    """A complete batch of one space's events, in the order in which they happened."""
    if len(events) < 2 or not any(overlap(a, b) for a, b in combinations(events, 2)):
        return list(events)
    return min(_orders(events), key=lambda order: _cost(missing, space, order, events, registered))


def _orders(events: Sequence[Event]) -> Iterable[list[Event]]:
    indices = range(len(events))
    if len(events) <= MOST:
        orders: Iterable[Sequence[int]] = permutations(indices)
    else:
        orders = [
            [*(x for x in indices[:to] if x != k), k, *(x for x in indices[to:] if x != k)] for k in indices for to in indices[: k + 1]
        ]
    for order in orders:
        # a discarding thread waits *before* it discards: nobody else has its range meanwhile
        if all(
            i < j or uffd.EVENT_REMOVE not in (events[i].kind, events[j].kind) or not overlap(events[i], events[j])
            for i, j in combinations(order, 2)
        ):
            yield [events[i] for i in order]


def _cost(missing: Missing, space: int, order: list[Event], told: Sequence[Event], registered: Registered) -> tuple[int, int, int, int]:
    """Contradictions to what is, doubts, bytes given up, events out of their place: the least is the likeliest."""
    spaces = {space: missing.copy()}
    contradictions = doubts = 0
    for k, e in enumerate(order):
        here = spaces[space]
        match e.kind:
            case uffd.EVENT_REMOVE | uffd.EVENT_UNMAP:
                here.drop(e.a, e.b)
            case uffd.EVENT_REMAP:
                contradictions += bool(here.within(e.b, e.b + e.n))
                here.move(e.a, e.b, e.n)
                later = any(x.kind == uffd.EVENT_REMAP and x.b < e.a + e.n and e.a < x.b + x.n for x in order[k + 1 :])
                doubts += not later and registered(space, e.a)  # but for MREMAP_DONTUNMAP nothing is there any more
            case uffd.EVENT_FORK:
                spaces[e.a] = here.copy()
    for which, left in spaces.items():
        ranges = [r for e in order if e.kind != uffd.EVENT_FORK for r in touches(e)]
        contradictions += sum(not registered(which, p.start) for a, b in ranges for p in left.within(a, b))
    kept = sum(m.bytes for m in spaces.values())
    places = {id(e): i for i, e in enumerate(told)}
    moved = sum(places[id(a)] > places[id(b)] for a, b in combinations(order, 2))
    return contradictions, doubts, -kept, moved
