"""In which order a guest's overlapping calls really happened, when the kernel tells of them in another.  Pure.

``munmap``, ``mremap`` and ``fork`` queue their event after they have let go of the address space.  A thread that is held up in between can
have the address that it freed given to another thread's ``mremap``, whose event then comes first; taken as they come, the late
``UNMAP`` would throw away pages that are still wanted (seen: zeros where data was, after some hundred thousand calls of four threads).

The kernel lets no page be placed while such a call is between the two, so a pager waits for a moment at which none is, and what it has read
by then is a complete batch.  Calls whose ranges do not meet are looked at apart.  Of the orders in which those that meet can have happened,
those are out that leave pages missing where nothing is registered now, or that move something onto what was still there; of the others,
the one that gives up the fewest pages.  Where in that order a child was born is asked afterwards, of the child: its address space is its
own from that moment on, and may have ended by now, so it must not say anything about its parent's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
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
    ask = cache(registered)
    forks = [i for i, e in enumerate(events) if e.kind == uffd.EVENT_FORK]
    before: list[list[Event]] = [[] for _ in range(len(forks) + 1)]  # what happened before the first fork, then before the second …
    for group in _groups(events):
        here = _part(missing, [events[i] for i in group])
        if here:
            order = min(_orders(events, group), key=lambda order: _cost(here, space, [events[i] for i in order], order, ask))
        else:
            order = tuple(group)  # nothing is missing there: it does not matter
        at = 0
        for k, fork in enumerate(forks):
            born = _born(here, events, order, fork, at, ask)
            before[k] += [events[i] for i in order[at:born]]
            at = born
        before[-1] += [events[i] for i in order[at:]]
    return [e for k, some in enumerate(before) for e in [*some, *(events[f] for f in forks[k : k + 1])]]


def _groups(events: Sequence[Event]) -> list[list[int]]:
    """The indices of what meets, directly or by way of others, in the order of its first; forks are in none."""
    groups: list[list[int]] = []
    for i, e in enumerate(events):
        if e.kind != uffd.EVENT_FORK:
            met = [g for g in groups if any(overlap(events[k], e) for k in g)]
            groups = [g for g in groups if g not in met] + [sorted([i, *(k for g in met for k in g)])]
    return sorted(groups)


def _part(missing: Missing, events: Iterable[Event]) -> Missing:
    """What is missing where these events were."""
    part = Missing()
    for p in (p for e in events for start, end in touches(e) for p in missing.within(start, end)):
        part.add(*p)
    return part


def _orders(events: Sequence[Event], group: Sequence[int]) -> Iterable[Sequence[int]]:
    orders: Iterable[Sequence[int]] = permutations(group)
    if len(group) > MOST:
        n = range(len(group))
        orders = (
            [*(x for x in group[:to] if x != group[k]), group[k], *(x for x in group[to:] if x != group[k])] for k in n for to in n[: k + 1]
        )
    for order in orders:
        # a discarding thread waits *before* it discards: nobody else has its range meanwhile
        if all(
            i < j or uffd.EVENT_REMOVE not in (events[i].kind, events[j].kind) or not overlap(events[i], events[j])
            for i, j in combinations(order, 2)
        ):
            yield order


def _happen(missing: Missing, e: Event) -> None:
    if e.kind == uffd.EVENT_REMAP:
        missing.move(e.a, e.b, e.n)
    else:
        missing.drop(e.a, e.b)


def _cost(missing: Missing, space: int, order: Sequence[Event], told: Sequence[int], registered: Registered) -> tuple[int, int, int, int]:
    """Contradictions to what is, doubts, bytes given up, events out of their place: the least is the likeliest."""
    here = missing.copy()
    contradictions = doubts = 0
    for k, e in enumerate(order):
        if e.kind == uffd.EVENT_REMAP:
            contradictions += bool(here.within(e.b, e.b + e.n))
            later = any(x.kind == uffd.EVENT_REMAP and x.b < e.a + e.n and e.a < x.b + x.n for x in order[k + 1 :])
            doubts += not later and registered(space, e.a)  # but for MREMAP_DONTUNMAP nothing is there any more
        _happen(here, e)
    return contradictions + _impossible(here, order, space, registered), doubts, -here.bytes, _displaced(told)


def _impossible(left: Missing, events: Sequence[Event], space: int, registered: Registered) -> int:
    """How much would be missing where nothing can be: asked at every end of a range that an event was about."""
    ends = {x for e in events for r in touches(e) for x in r}
    return sum(not registered(space, x) for p in left for x in {p.start, *(x for x in ends if p.start < x < p.end)})


def _displaced(told: Sequence[int]) -> int:
    return sum(a > b for a, b in combinations(told, 2))


def _born(missing: Missing, events: Sequence[Event], order: Sequence[int], fork: int, earliest: int, registered: Registered) -> int:
    """After how many of ``order`` the child of the event with index ``fork`` was born."""
    removals = [(n, i) for n, i in enumerate(order) if events[i].kind == uffd.EVENT_REMOVE]  # these are told of before they happen
    first = max([earliest, *(n + 1 for n, i in removals if i < fork)])
    last = max(first, min([len(order), *(n for n, i in removals if i > fork)]))
    here, costs = missing.copy(), {}
    for k in range(last + 1):
        if k >= first:
            moved = sum(i > fork for i in order[:k]) + sum(i < fork for i in order[k:])
            costs[k] = _impossible(here, [events[i] for i in order], events[fork].a, registered), -here.bytes, moved
        if k < len(order):
            _happen(here, events[order[k]])
    return min(costs, key=costs.__getitem__)
