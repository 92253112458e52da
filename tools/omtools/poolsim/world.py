"""Virtual time and a virtual network under any number of :class:`mig.pool.pool.Pool`.

Each node has a clock of its own (another offset); datagrams take a while, may be lost, may be cut off; a stalled node does nothing, its
kernel keeps what arrives and answers knocks; a dead one is gone.  Everything follows from one seed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from mig.model import NodeInfo
from mig.pool import wire
from mig.pool.message import Message
from mig.pool.pool import GROUP, Changed, Outcome, Pool, Timing

OVERHEAD = 28 + 42 + 23
"""Bytes of each datagram beside the message: IP and UDP headers, the seal, sender with incarnation and counter."""
_TICK, _ARRIVES, _KNOCKED, _CALL = range(4)
_ONCE = "once"
"""A tick beside the others, for news that were gathered."""
_KEPT = 700
"""Datagrams that the kernel keeps for a stalled node: 1 MiB."""
_EPOCH = 1_700_000_000_000
_BORN = 600
"""Samples of each node of which the true birth is remembered."""


@dataclass
class Network:
    """Loss as a probability for each datagram; delay in seconds, exponential above the least."""

    loss: float = 0.0
    least: float = 0.0002
    delay: float = 0.0005
    side: dict[int, int] = field(default_factory=dict)
    """Partition: nodes of different sides do not hear each other."""


class World:
    """``exact``: every message goes through msgpack and back, which is slow and proves that the form loses nothing."""

    def __init__(self, count: int, timing: Timing, seed: int, *, exact: bool = False, multicast: bool = False) -> None:
        self.rng = random.Random(seed)
        self.timing, self.exact, self.multicast = timing, exact, multicast
        self.network = Network()
        self.now = 0.0
        self.nodes: dict[int, Pool] = {}
        self.offsets: dict[int, float] = {}
        self.dead: set[int] = set()
        self.stalled: dict[int, list[tuple[Any, ...]]] = {}
        self.born: dict[int, dict[int, float]] = {}
        self.sent: dict[int, int] = {}
        self.heard: dict[int, int] = {}
        self.datagrams = 0
        self.watch: Callable[[int, Changed], None] = lambda viewer, change: None
        self._gathering: dict[int, float] = {}
        """When a node passes on what it gathers."""
        self._events: list[tuple[float, int, int, int, Any, Any]] = []
        self._order = 0
        for i in range(1, count + 1):
            self.add(i, start=self.rng.random() * timing.gossip_s)

    # -- nodes --------------------------------------------------------------------------------------------------------------------

    def add(self, i: int, *, start: float = 0.0, seeds: Iterable[int] = ()) -> Pool:
        """A node that starts ``start`` seconds from now."""
        at = self.now + start
        self.offsets[i] = self.rng.random() * 1000 + 100
        me = NodeInfo(
            i, f"node{i}", address(i), 7230, incarnation=_EPOCH + int(at * 1000), boot=f"{int(at * 1000):016x}", cpus=8.0, version="0.2.0",
            load=self.rng.random(), mem_total=64 << 30, mem_free=self.rng.randrange(1 << 30, 64 << 30), fingerprint="f" * 32,
            kernel="6.12.48+deb13-amd64", criu="lazy_pages,pidfd_store", cpu="x86_64-0123456789ab-2696",
        )  # fmt: skip
        pool = Pool(me, [(address(s), 7230) for s in seeds], self.timing, random.Random(self.rng.random()), at + self.offsets[i])
        self.nodes[i] = pool
        self.born[i] = {}
        self.sent[i] = self.heard[i] = 0
        self._push(at, _TICK, i, pool, None)
        return pool

    def acquaint(self) -> None:
        """Everybody knows everybody already: a pool that has been up for long."""
        first = next(iter(self.nodes.values())).table
        first.grow(max(self.nodes))
        for p in self.nodes.values():
            first.put(p.members.own_record())
        for p in list(self.nodes.values())[::-1]:  # the model last
            p.table.adopt(first)
        for i, p in self.nodes.items():
            p.table.leave_out(i)
            p.members.rumors.forget(i)
            start = int((self.now + self.offsets[i]) * 10)
            for n in range(len(p.table.made)):
                p.table.made[n] = start

    def kill(self, i: int) -> None:
        """Power loss."""
        self.dead.add(i)

    def stall(self, i: int, seconds: float) -> None:
        """It gets no CPU time for so long."""
        if i not in self.stalled and i not in self.dead:
            self.stalled[i] = []
            self._push(self.now + seconds, _CALL, i, self._resume, None)

    def at(self, when: float, what: Callable[[int], None], i: int = 0) -> None:
        """Call ``what(i)`` at this time."""
        self._push(when, _CALL, i, what, None)

    def leave(self, i: int) -> None:
        """It says goodbye and ends."""
        p = self.nodes[i]
        p.me.state = "left"
        self._apply(i, p.urgent(self.now + self.offsets[i], p.me))
        self.dead.add(i)

    def living(self) -> list[int]:
        """Nodes that are not dead."""
        return [i for i in self.nodes if i not in self.dead]

    # -- time ---------------------------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """All events up to a time."""
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            now, _, kind, i, a, b = pop(events)
            self.now = now
            if kind == _CALL:
                a(i)
            elif i in self.dead:
                continue
            elif i in self.stalled:
                if len(self.stalled[i]) < _KEPT or kind == _TICK:
                    self.stalled[i].append((kind, i, a, b))
            else:
                self._event(kind, i, a, b)
        self.now = until

    def _event(self, kind: int, i: int, a: Any, b: Any) -> None:
        pool, now = self.nodes[i], self.now + self.offsets[i]
        if kind == _TICK:
            if a is not pool:
                return  # of a former life
            before = pool.loads.mine.number
            pool.me.load = (pool.me.load * 7 + self.rng.random()) / 8
            out = pool.tick(now, pool.me)
            if pool.loads.mine.number != before:
                born = self.born[i]
                born[pool.loads.mine.number] = self.now
                if len(born) > _BORN:
                    del born[next(iter(born))]
            if b != _ONCE:
                self._push(max(self.now + 0.001, pool.due() - self.offsets[i]), _TICK, i, pool, None)
        elif kind == _ARRIVES:
            out = pool.datagram(now, a, b[0], group=b[1])
            if (due := pool.news.due()) != self._gathering.get(i, math.inf):
                self._gathering[i] = due
                if due < math.inf:
                    self._push(due - self.offsets[i], _TICK, i, pool, _ONCE)
        else:
            out = pool.knocked(now, a, b)
        if out.sends or out.changes or out.knocks:
            self._apply(i, out)

    def _resume(self, i: int) -> None:
        for kind, node, a, b in self.stalled.pop(i):
            if node not in self.dead:
                self._event(kind, node, a, b)

    def _push(self, at: float, kind: int, i: int, a: Any, b: Any) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, kind, i, a, b))

    # -- network ------------------------------------------------------------------------------------------------------------------

    def _apply(self, i: int, out: Outcome) -> None:
        for c in out.changes:
            self.watch(i, c)
        for k in out.knocks:
            answered = k.node not in self.dead and self._passes(i, k.node) and self._passes(k.node, i)
            self._push(self.now + (0.001 if answered else 2 * self.timing.timeout_s), _KNOCKED, i, k.node, answered)
        source = (address(i), 7230)
        for s in out.sends:
            m = self._formed(i, s.message)
            size = wire.size(m) + OVERHEAD
            self.sent[i] += size
            self.datagrams += 1
            if s.to == GROUP:
                if self.multicast:
                    for to in self.nodes:
                        if to != i:
                            self._deliver(i, to, source, m, size, True)
            else:
                self._deliver(i, number(s.to[0]), source, m, size, False)

    def _deliver(self, i: int, to: int, source: tuple[str, int], m: Message, size: int, group: bool) -> None:
        if to in self.dead or to not in self.nodes or not self._passes(i, to):
            return
        self.heard[to] += size
        n = self.network
        self._push(self.now + n.least + self.rng.expovariate(1 / n.delay), _ARRIVES, to, source, (m, group))

    def _passes(self, a: int, b: int) -> bool:
        n = self.network
        if n.side and n.side.get(a, 0) != n.side.get(b, 0):
            return False
        return not n.loss or self.rng.random() >= n.loss

    def _formed(self, i: int, m: Message) -> Message:
        m.sender = i
        if self.exact:
            packed = msgpack.packb(wire.encode(m))
            assert len(packed) <= wire.size(m) <= wire.BUDGET, (len(packed), wire.size(m), m)
            m = wire.decode({**msgpack.unpackb(packed), "f": i})
        return m


def address(i: int) -> str:
    """Of node ``i``."""
    return f"10.0.{i >> 8}.{i & 255}"


def number(addr: str) -> int:
    """The node that has this address."""
    _, _, high, low = addr.split(".")
    return int(high) << 8 | int(low)
