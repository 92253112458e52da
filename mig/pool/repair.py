"""Digests that two nodes compare now and then: what a lost rumour left different is found and told again.

Members fall into buckets by id; a bucket's sum covers id, incarnation and presence of its members.  Only differing buckets are talked
about, so that equal tables cost one datagram.
"""

from __future__ import annotations

from collections.abc import Iterable

from mig.pool.message import ALIVE, LEFT, SUSPECT, Digest, Rumor
from mig.pool.table import Table

MEMBERS = 8
"""Members of a bucket on average."""
WINDOW = 128
"""Buckets in one digest; larger pools are compared part by part."""


def digest(table: Table, me: Rumor, part: int) -> Digest:
    """The ``part``-th window of our digest (any number; it wraps)."""
    count = table.size()
    buckets = 1
    while buckets * MEMBERS < count:
        buckets *= 2
    width = min(buckets, WINDOW)
    first = part * width % buckets
    return Digest(buckets, first, sums(table, me, buckets, first, width))


def sums(table: Table, me: Rumor, buckets: int, first: int, width: int) -> tuple[int, ...]:
    """Sums of the buckets of a window, over everybody who is not gone."""
    out = [0] * width
    for i in _inside(table, buckets, first, width):
        b = i % buckets - first
        out[b] = out[b] + _mix(i, table.incarnations[i]) & 0xFFFFFFFF
    b = me.id % buckets - first
    if 0 <= b < width and me.state != LEFT:
        out[b] = out[b] + _mix(me.id, me.incarnation) & 0xFFFFFFFF
    return tuple(out)


def differing(table: Table, me: Rumor, theirs: Digest) -> list[Rumor]:
    """What we hold of the members in the buckets in which we differ."""
    ours = sums(table, me, theirs.buckets, theirs.first, len(theirs.sums))
    bad = {theirs.first + n for n, (a, b) in enumerate(zip(ours, theirs.sums, strict=True)) if a != b}
    if not bad:
        return []
    out = [_held(table, me, i) for i in table.ids if i % theirs.buckets in bad]
    if me.id % theirs.buckets in bad:
        out.append(me)
    return out


def _inside(table: Table, buckets: int, first: int, width: int) -> Iterable[int]:
    """Everybody in a window who is not gone: of a large pool a small part, found without looking at the others."""
    if width == buckets:
        return table.up()
    known = len(table.states)
    window = (i for base in range(first, known, buckets) for i in range(base, min(base + width, known)))
    return (i for i in window if table.records[i] is not None and table.states[i] <= SUSPECT)


def _held(table: Table, me: Rumor, node: int) -> Rumor:
    state = table.states[node]
    # a suspicion is passed on by rumour, with who has it; here it would look like a confirmation
    return Rumor(node, table.incarnations[node], state if state > 1 else ALIVE, me.id)


def _mix(node: int, incarnation: int) -> int:
    x = (incarnation ^ incarnation >> 32 ^ node << 16 ^ node) * 0x9E3779B1 & 0xFFFFFFFF
    return (x ^ x >> 15) * 0x85EBCA6B & 0xFFFFFFFF
