"""Which load entries are worth sending: the freshest, because those are most likely news to the other.

Samples are kept in buckets by the tenth of a second in which they were made, and travel in groups of one age, so that neither taking one
in nor choosing a hundred of ten thousand sorts anything or makes a new object.
"""

from __future__ import annotations

from itertools import islice

from mig.pool.message import Group, Load, Sample
from mig.pool.table import Table

OLDEST = 255
"""Tenths of a second; older samples are not passed on: whoever lacks such a one finds its node silent anyway."""
_WRAPS = 18_000
"""Tenths of a second after which the numbers of a silent node may have wrapped: its next sample is taken whatever its number."""


class Loads:
    """The samples that one node knows, its own included.

    Our own are numbered by the tenths of a second since ``epoch`` (of our own time), so that numbers grow over restarts as well.  They are
    serial numbers of 16 bits (RFC 1982).
    """

    def __init__(self, table: Table, me: int, epoch: int) -> None:
        self.table, self.me, self._epoch = table, me, epoch
        self.mine = Sample(me, 0, Load())
        self._made: int | None = None
        self._buckets: dict[int, list[Sample]] = {}

    def publish(self, load: Load, tenths: int) -> None:
        """A new sample of our own."""
        number = self._epoch + tenths & 0xFFFF
        if self._made is not None and not 0 < (number - self.mine.number) & 0xFFFF < 0x8000:
            number = self.mine.number + 1 & 0xFFFF  # two in one tenth
        self.mine, self._made = Sample(self.me, number, load), tenths
        for old in [t for t in self._buckets if t < tenths - OLDEST]:
            del self._buckets[old]

    def own(self, tenths: int) -> Group:
        """Our own sample."""
        return min(max(tenths - (self._made or 0), 0), OLDEST), [self.mine]

    def take(self, groups: list[Group], tenths: int) -> tuple[list[Sample], list[int]]:
        """Samples came in: which of them were news, and the ids that we have no record of."""
        samples, made, records = self.table.samples, self.table.made, self.table.records
        known = len(samples)
        news: list[Sample] = []
        strangers: list[int] = []
        for age, items in groups:
            when = tenths - age
            fresh: list[Sample] = []
            for s in items:
                i = s[0]
                if i < known:
                    old = samples[i]
                    if old is s:  # handed on without being packed, as in the simulator
                        continue
                    if old is not None:
                        if not 0 < (s[1] - old[1]) & 0xFFFF < 0x8000 and when - made[i] < _WRAPS:
                            continue
                    elif records[i] is None:
                        if i != self.me:
                            strangers.append(i)
                        continue
                    samples[i] = s
                    made[i] = when
                    fresh.append(s)
                elif i != self.me:
                    strangers.append(i)
            if fresh:
                news += fresh
                if when in self._buckets:
                    self._buckets[when] += fresh
                else:
                    self._buckets[when] = fresh
        return news, strangers

    def freshest(self, room: int, tenths: int) -> list[Group]:
        """At most ``room`` samples in groups, the youngest first, our own among them."""
        if room <= 0:
            return []
        out = [self.own(tenths)]
        room -= 1
        if not room:
            return out
        samples, states = self.table.samples, self.table.states
        for when in range(tenths + 1, tenths - OLDEST, -1):
            bucket = self._buckets.get(when)
            if bucket is None:
                continue
            current = [s for s in bucket[:room] if samples[s[0]] is s and states[s[0]] <= 1]
            if len(bucket) > room:
                current += islice((s for s in bucket[room:] if samples[s[0]] is s and states[s[0]] <= 1), room - len(current))
            elif not current:
                del self._buckets[when]
            elif len(current) < len(bucket):
                self._buckets[when] = current[:]  # what has been replaced is not looked at again
            if current:
                out.append((max(tenths - when, 0), current))
                room -= len(current)
                if room <= 0:
                    break
        return out

    def as_groups(self, news: list[Sample], tenths: int) -> list[Group]:
        """Samples with their ages, to be passed on."""
        made = self.table.made
        return [(min(max(tenths - made[s.id], 0), OLDEST), [s]) for s in news]
