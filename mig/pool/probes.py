"""SWIM's probes: ask one node whether it lives; if it does not answer, have others ask it; only then suspect it.

Das, Gupta, Motivala: *SWIM*, DSN 2002, with Lifeguard's awareness of oneself: a node that gets no answers from anybody, not even the "no"
of its helpers, is itself the slow one, and becomes more patient.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from mig.pool.message import ACK, ASK, NACK, PING, Message
from mig.pool.table import Table
from mig.pool.timing import Timing

PATIENT = 8
"""Awareness stays below: probes then take nine times as long."""
_VERIFIED = 10
"""Nodes at once that we ask because others say that they are dead: when half of a large pool is lost, thousands wait for it."""
_VERIFY_S = 0.02
"""Seconds between two of them, as a mean: those who live answer at once, and their answers tell of more deaths."""
_VERIFY_BURST = 20
"""So many of them may follow each other without a pause, after a rest: a few deaths are looked into at once."""


@dataclass
class _Probe:
    target: int
    patience: float
    """When others are asked."""
    end: float
    again: float
    """When it is sent once more."""
    pause: float
    asked: int = 0
    refused: int = 0
    told: bool = False
    """Others say that it is dead."""


@dataclass
class _Relay:
    origin: int
    number: int
    target: int
    end: float


class Probes:
    """The probes of one node.  What it returns is to be sent to a node id."""

    def __init__(self, table: Table, timing: Timing, rng: random.Random) -> None:
        self.table, self.timing, self.rng = table, timing, rng
        self.awareness = 0
        self._number = rng.randrange(1 << 16)
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._round: Iterator[int] = iter(())
        self._verify_next = -math.inf

    def due(self) -> float:
        """When something of ours ends; infinity when nothing is under way."""
        if not self._probes and not self._relays:
            return math.inf
        ends = [min(p.again, p.end if p.asked else p.patience) for p in self._probes.values()]
        return min(ends + [r.end for r in self._relays.values()], default=math.inf)

    def start(self, now: float, suspect: int | None = None) -> tuple[int, Message] | None:
        """A new probe, of a suspect or of whose turn it is; None when there is nobody."""
        target = self._choose() if suspect is None else suspect
        if target is None:
            return None
        return self._begin(now, target, 1 + self.awareness, told=False)

    def verify(self, now: float, node: int) -> tuple[int, Message]:
        """A probe of a node that is dead as others say.  They have had helpers and were patient: we need neither."""
        self._verify_next = max(self._verify_next, now - _VERIFY_BURST * _VERIFY_S) + _VERIFY_S
        return self._begin(now, node, 1, told=True)

    def room(self, now: float) -> bool:
        """Whether one more may be verified now."""
        return now >= self._verify_next and sum(p.told for p in self._probes.values()) < _VERIFIED

    def look(self, now: float) -> tuple[list[tuple[int, Message]], list[int], list[int]]:
        """Time has passed: messages to send, nodes to knock at, and nodes that did not answer."""
        sends: list[tuple[int, Message]] = []
        knocks: list[int] = []
        silent: list[int] = []
        for n, p in list(self._probes.items()):
            if now >= p.again and now < p.end:
                sends.append((p.target, Message(PING, number=n)))
                p.again = now + p.pause
            if not p.asked and now >= p.patience:
                helpers = [] if p.told else self._helpers(p.target)
                sends += [(h, Message(ASK, number=n, subject=p.target)) for h in helpers]
                p.asked = max(1, len(helpers))
                knocks.append(p.target)
                if not helpers:
                    p.refused = 1  # nobody to blame ourselves by
            elif p.asked and now >= p.end:
                del self._probes[n]
                self.awareness = min(PATIENT, self.awareness + max(0, p.asked - p.refused))
                silent.append(p.target)
        for n, r in list(self._relays.items()):
            if now >= r.end:
                del self._relays[n]
                sends.append((r.origin, Message(NACK, number=r.number, subject=r.target)))
        return sends, knocks, silent

    def asked(self, now: float, m: Message) -> tuple[int, Message] | None:
        """Somebody asks us to probe ``m.subject`` for him."""
        if not self.table.knows(m.subject) or len(self._relays) > 1000:
            return None
        n = self._next()
        self._relays[n] = _Relay(m.sender, m.number, m.subject, now + self.timing.timeout_s * 0.8)
        return m.subject, Message(PING, number=n)

    def answered(self, m: Message) -> tuple[int, Message] | None:
        """An ACK or NACK: perhaps to be passed on to whom we asked for."""
        if m.kind == NACK:
            if p := self._probes.get(m.number):
                p.refused += 1
            return None
        if r := self._relays.pop(m.number, None):
            return r.origin, Message(ACK, number=r.number, subject=r.target)
        if self._probes.pop(m.number, None):
            self.awareness = max(0, self.awareness - 1)
        return None

    def slept(self) -> None:
        """We were away: what was under way says nothing."""
        self._probes.clear()
        self._relays.clear()
        self.awareness = min(PATIENT, self.awareness + 1)

    def _begin(self, now: float, target: int, slow: int, *, told: bool) -> tuple[int, Message]:
        t, n = self.timing, self._next()
        pause = t.probe_s * slow / t.pings if t.pings > 1 else math.inf
        self._probes[n] = _Probe(target, now + t.timeout_s * slow, now + t.probe_s * slow, now + pause, pause, told=told)
        return target, Message(PING, number=n)

    def _next(self) -> int:
        self._number = self._number % 0xFFFFFF + 1
        return self._number

    def _choose(self) -> int | None:
        busy = {p.target for p in self._probes.values()}
        best: int | None = None
        for _ in range(self.timing.choices):
            node = self._turn()
            if node is None:
                break
            if node not in busy and (best is None or self.table.made[node] < self.table.made[best]):
                best = node
        return best

    def _turn(self) -> int | None:
        """The next node of the round: everybody once, in an order of our own."""
        for _ in range(2):
            for node in self._round:
                if self.table.knows(node) and self.table.states[node] <= 1:
                    return node
            self._round = self._permuted(self.table.up_as_it_is())
        return None

    def _permuted(self, nodes: list[int]) -> Iterator[int]:
        """A pseudo-random order without a list of its own: steps of a length that has no divisor in common with the count."""
        count = len(nodes)
        if not count:
            return
        step = self.rng.randrange(1, count + 1)
        while math.gcd(step, count) != 1:
            step = self.rng.randrange(1, count + 1)
        at = self.rng.randrange(count)
        for _ in range(count):
            yield nodes[at]
            at = (at + step) % count

    def _helpers(self, target: int) -> list[int]:
        up = self.table.up()
        few = self.rng.sample(up, min(len(up), self.timing.helpers + 1))
        return [h for h in few if h != target and self.table.states[h] == 0][: self.timing.helpers]
