"""Who is in the pool: a table of nodes fed by datagrams and time, which returns the datagrams to send and what has changed.

Pure: it reads no clock, opens nothing and draws chance from the generator that it is given.  Every entry carries its age (now minus the
moment its node made it), never a wall time, so clocks need not agree.  An entry replaces another when its incarnation is greater, or equal
and it is younger.  A node unheard of (directly or through others) for ``suspect_s`` is suspect, after ``dead_s`` dead; whoever says
``left`` is gone at once.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mig.model import NodeInfo

HELLO, VECTOR = "hello", "vector"
GROUP = ("", 0)
"""Destination of a datagram that goes to the multicast group."""
_FIELDS = (
    "id", "name", "addr", "port", "state", "incarnation", "boot", "speed", "cpus", "load", "mem_total", "mem_free", "guests", "accepting",
    "why_not", "version", "fingerprint",
)  # fmt: skip
_TYPES = (int, str, str, int, str, int, str, float, float, float, int, int, int, bool, str, str, str)
_BUDGET = 1250
"""Bytes of entries in one datagram; the rest is the seal and the frame."""
_STALLED = 2.0
"""Seconds without a tick after which we were the ones who slept: nobody is declared dead for our own absence (Lifeguard)."""
_EARLY = 5.0
"""Seconds after the start during which hellos go out each interval, so that a pool forms fast."""


@dataclass(frozen=True)
class Send:
    """A datagram to send: to one address, or to :data:`GROUP`."""

    to: tuple[str, int]
    body: dict[str, Any]


@dataclass(frozen=True)
class Changed:
    """A node's state or boot changed.  ``before`` is "" for a node that was unknown."""

    node: NodeInfo
    before: str
    rebooted: bool = False


@dataclass
class Entry:
    """What we know of one node, and when (in our time) its node had made it."""

    info: NodeInfo
    made: float


@dataclass
class Timing:
    """The intervals of :class:`mig.config.Config` that matter here; seconds."""

    hello_s: float = 5.0
    gossip_s: float = 1.0
    suspect_s: float = 5.0
    dead_s: float = 8.0
    forget_s: float = 3600.0
    fanout: int = 6


@dataclass
class Outcome:
    """What to send and to report after an input."""

    sends: list[Send] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)


class Membership:
    """The table of one node.  ``now`` is any monotonic time in seconds."""

    def __init__(self, me: NodeInfo, seeds: Iterable[tuple[str, int]], timing: Timing, rng: random.Random, now: float) -> None:
        self.me, self.seeds, self.timing, self.rng = me, list(seeds), timing, rng
        self.table: dict[int, Entry] = {}
        self.clash: str = ""  # address of another node that uses our id
        self._started = self._ticked = now
        self._hello_due = now

    def nodes(self, now: float) -> list[NodeInfo]:
        """All known nodes, ourselves included, by id, with their ages."""
        out = [dataclasses.replace(self.me, age_s=0.0)]
        out += [dataclasses.replace(e.info, age_s=round(max(0.0, now - e.made), 2)) for e in self.table.values()]
        return sorted(out, key=lambda n: n.id)

    def tick(self, now: float, me: NodeInfo) -> Outcome:
        """One gossip interval has passed; ``me`` is our own fresh entry."""
        out = Outcome()
        slept = now - self._ticked
        if slept > self.timing.gossip_s + _STALLED:
            for e in self.table.values():
                e.made += slept - self.timing.gossip_s
        self._ticked, self.me = now, me
        for node in list(self.table):
            self._grow_old(now, node, out)
        if now >= self._hello_due:
            out.sends += self._hellos(now)
            self._hello_due = now + (self.timing.gossip_s if now - self._started < _EARLY else self.timing.hello_s)
        out.sends += self._vectors(now, self._partners())
        return out

    def urgent(self, now: float, me: NodeInfo) -> Outcome:
        """Our own entry changed in a way that others must know at once (blocked, leaving)."""
        self.me = me
        everybody = [e.info for e in self.table.values() if e.info.state in ("alive", "suspect")]
        return Outcome(sends=self._vectors(now, everybody))

    def datagram(self, now: float, source: tuple[str, int], body: dict[str, Any]) -> Outcome:
        """An opened datagram from ``source``; raises ``ValueError`` when it makes no sense."""
        out = Outcome()
        entries = body.get("n")
        if not isinstance(entries, list):
            raise ValueError("no entries")
        for raw in entries:
            info, age = _unpack(raw)
            self._take(now, info, age, out)
        if body.get("t") == HELLO and body.get("f") != self.me.id:
            out.sends += self._vectors(now, [_unpack(entries[0])[0]]) if entries else []
        return out

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _take(self, now: float, info: NodeInfo, age: float, out: Outcome) -> None:
        if info.id == self.me.id:
            if (
                info.incarnation != self.me.incarnation
                and (info.addr, info.port) != (self.me.addr, self.me.port)
                and age < self.timing.suspect_s
            ):
                self.clash = info.addr
            return
        made = now - age
        old = self.table.get(info.id)
        if old and (info.incarnation, made) <= (old.info.incarnation, old.made):
            return
        if old is None and age > self.timing.dead_s:
            return  # somebody still remembers a dead one: no reason to learn of it
        self.table[info.id] = Entry(info, made)
        rebooted = bool(old and old.info.boot != info.boot)
        before = old.info.state if old else ""
        if info.state != "left":
            info.state = self._by_age(now - made)
        if before != info.state or rebooted:
            out.changes.append(Changed(info, before, rebooted))

    def _grow_old(self, now: float, node: int, out: Outcome) -> None:
        e = self.table[node]
        age, before = now - e.made, e.info.state
        if age > self.timing.forget_s:
            del self.table[node]
            return
        if before != "left" and (state := self._by_age(age)) != before:
            e.info.state = state
            out.changes.append(Changed(e.info, before))

    def _by_age(self, age: float) -> str:
        return "alive" if age < self.timing.suspect_s else "suspect" if age < self.timing.dead_s else "dead"

    def _partners(self) -> list[NodeInfo]:
        up = [e.info for e in self.table.values() if e.info.state in ("alive", "suspect")]
        return up if len(up) <= self.timing.fanout else self.rng.sample(up, self.timing.fanout)

    def _hellos(self, now: float) -> list[Send]:
        hello = {"t": HELLO, "n": [_pack(self.me, 0.0)]}
        up = {(e.info.addr, e.info.port) for e in self.table.values() if e.info.state == "alive"}
        mine = (self.me.addr, self.me.port)
        # dead nodes too: a cable that is plugged in again joins both halves where multicast does not reach
        lost = [(e.info.addr, e.info.port) for e in self.table.values() if e.info.state == "dead"]
        if len(lost) > self.timing.fanout:
            lost = self.rng.sample(lost, self.timing.fanout)
        return [Send(GROUP, hello), *(Send(a, hello) for a in dict.fromkeys([*self.seeds, *lost]) if a not in up and a != mine)]

    def _vectors(self, now: float, to: list[NodeInfo]) -> list[Send]:
        if not to:
            return []
        body = {"t": VECTOR, "n": self._vector(now)}
        return [Send((n.addr, n.port), body) for n in to]

    def _vector(self, now: float) -> list[list[Any]]:
        """Our own entry, then the freshest ones that fit; dead ones are not spread."""
        out = [_pack(self.me, 0.0)]
        room = _BUDGET - _size(out[0])
        for e in sorted(self.table.values(), key=lambda e: -e.made):
            if e.info.state == "dead":
                continue
            raw = _pack(e.info, now - e.made)
            room -= _size(raw)
            if room < 0:
                break
            out.append(raw)
        return out


def _pack(n: NodeInfo, age: float) -> list[Any]:
    state = n.state if n.state == "left" else "alive"  # suspicion is everybody's own conclusion from the age
    short = {"state": state, "load": round(n.load, 3), "speed": round(n.speed, 3), "cpus": round(n.cpus, 3), "why_not": n.why_not[:60]}
    return [*(short.get(f, getattr(n, f)) for f in _FIELDS), max(0, round(age * 1000))]


def _unpack(raw: Any) -> tuple[NodeInfo, float]:
    if not isinstance(raw, list) or len(raw) < len(_FIELDS) + 1:
        raise ValueError("an entry is too short")
    values = dict(zip(_FIELDS, raw, strict=False))
    for f, kind in zip(_FIELDS, _TYPES, strict=True):
        if kind is float and isinstance(values[f], int):
            values[f] = float(values[f])
        if type(values[f]) is not kind:
            raise ValueError(f"{f} of an entry is {type(values[f]).__name__}")
    age = raw[len(_FIELDS)]
    if not isinstance(age, int) or age < 0:
        raise ValueError("an entry has no age")
    return NodeInfo(**values), age / 1000


def _size(raw: list[Any]) -> int:
    """Upper bound of the packed length: 9 bytes for a number, text as UTF-8."""
    return 3 + sum(len(v.encode()) + 3 if isinstance(v, str) else 9 for v in raw)
