"""What one node knows of all nodes, as columns indexed by id.

Columns instead of objects: a pool of 10,000 nodes has 10,000 such tables in a simulation.  Records and loads are shared, never changed.
"""

from __future__ import annotations

import dataclasses
from array import array
from bisect import bisect_left, insort

from mig.model import NodeInfo
from mig.pool.message import ACCEPTING, ALIVE, NAMES, SUSPECT, UNUSED_SHIFT, UNUSED_STEPS, Load, Sample
from mig.pool.suspicion import Suspicion

POOL_STATES = ("", "in", "leaving", "out")


class Table:
    """All columns.  ``made`` is in tenths of a second of our own time."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        """Everybody of whom we have a record, without ourselves."""
        self.records: list[NodeInfo | None] = []
        self.samples: list[Sample | None] = []
        self.made = array("i")
        self.states = bytearray()
        self.incarnations: list[int] = []
        self.suspects: dict[int, Suspicion] = {}
        self.gone: dict[int, float] = {}
        """Dead and left nodes, and since when; those that are gone longest first."""
        self._up: list[int] | None = None
        self._lent = False  # somebody goes on reading the list

    def grow(self, node: int) -> None:
        """Make room for this id."""
        more = node + 1 - len(self.states)
        if more > 0:
            self.records += [None] * more
            self.samples += [None] * more
            self.made.extend([0] * more)
            self.states.extend(bytes(more))
            self.incarnations += [0] * more

    def knows(self, node: int) -> bool:
        """Whether there is a record."""
        return node < len(self.records) and self.records[node] is not None

    def up(self) -> list[int]:
        """Nodes that are alive or suspect, by id.  Not to be changed, nor kept: it changes with them; see :meth:`up_as_it_is`."""
        if self._up is None:
            self._up, self._lent = sorted(i for i in self.ids if self.states[i] <= SUSPECT), False
        return self._up

    def up_as_it_is(self) -> list[int]:
        """The same, of this moment; costs a copy only when one of them changes."""
        up, self._lent = self.up(), True
        return up

    def _up_changes(self, node: int, up: bool) -> None:
        # one at a time, as half of a large pool may die at once
        if self._up is None or not self.knows(node):
            return
        if self._lent:
            self._up, self._lent = self._up[:], False
        if up:
            insort(self._up, node)
        else:
            del self._up[bisect_left(self._up, node)]

    def size(self) -> int:
        """Nodes in the pool, ourselves included."""
        return len(self.up()) + 1

    def address(self, node: int) -> tuple[str, int]:
        """Where to send what is meant for it; raises ``LookupError`` for a node without record."""
        r = self.records[node] if node < len(self.records) else None
        if r is None:
            raise LookupError(f"no record of node {node}")
        return r.addr, r.port

    def put(self, r: NodeInfo) -> None:
        """A new or newer record."""
        self.grow(r.id)
        old = self.records[r.id]
        if old is None or old.boot != r.boot or (old.addr, old.port) != (r.addr, r.port):
            self.samples[r.id] = None  # another life numbers its loads anew
        self.records[r.id] = r
        if old is None:
            self.ids.append(r.id)
            if self.states[r.id] <= SUSPECT:
                self._up_changes(r.id, True)
        self.incarnations[r.id] = max(self.incarnations[r.id], r.incarnation)

    def set_state(self, node: int, state: int) -> None:
        """Its state from now on."""
        if (self.states[node] <= SUSPECT) != (state <= SUSPECT):
            self._up_changes(node, state <= SUSPECT)
        self.states[node] = state
        if state != SUSPECT:
            self.suspects.pop(node, None)
        if state <= SUSPECT:
            self.gone.pop(node, None)

    def forget(self, node: int) -> None:
        """As if it had never been."""
        self.ids.remove(node)
        self.records[node] = self.samples[node] = None
        self.incarnations[node] = 0
        self.set_state(node, ALIVE)
        self._up = None

    def adopt(self, other: Table) -> None:
        """Know what the other one knows: how a simulation begins with a pool that has been up for long."""
        self.ids, self.records, self.samples = list(other.ids), list(other.records), list(other.samples)
        self.made = other.made[:]
        self.states, self.incarnations = other.states[:], list(other.incarnations)
        self._up = None

    def leave_out(self, node: int) -> None:
        """Nobody is in his own table."""
        if self.knows(node):
            self.forget(node)

    def shift(self, tenths: int) -> None:
        """We were away for so long: all ages are as when we went."""
        for i in self.ids:
            self.made[i] += tenths
        for s in self.suspects.values():
            s.since += tenths / 10
            s.deadline += tenths / 10

    def info(self, node: int, now_tenths: int) -> NodeInfo:
        """The whole entry of a node, with its age."""
        r, sample = self.records[node], self.samples[node]
        assert r is not None
        age = max(0, now_tenths - self.made[node]) / 10
        state = NAMES[self.states[node]]
        if sample is None:
            return dataclasses.replace(r, state=state, age_s=age)
        load = sample.load
        return dataclasses.replace(
            r, state=state, age_s=age, load=round(load.load, 3), mem_free=load.mem_free, guests=load.guests,
            accepting=bool(load.flags & ACCEPTING), pool=POOL_STATES[load.flags >> 1 & 3], psi_cpu=_percent(load.psi_cpu),
            psi_mem=_percent(load.psi_mem), mem_unused=_unused(load.flags, r.mem_total), incarnation=self.incarnations[node],
        )  # fmt: skip


def load_of(n: NodeInfo) -> Load:
    """The changing part of our own entry."""
    flags = (ACCEPTING if n.accepting else 0) | (POOL_STATES.index(n.pool) if n.pool in POOL_STATES else 0) << 1
    if n.mem_unused >= 0 and n.mem_total > 0:
        flags |= 1 + min(round(n.mem_unused / n.mem_total * UNUSED_STEPS), UNUSED_STEPS) << UNUSED_SHIFT
    return Load(n.load, n.mem_free, n.guests, flags, _byte(n.psi_cpu), _byte(n.psi_mem))


def _unused(flags: int, total: int) -> int:
    steps = flags >> UNUSED_SHIFT
    return total * (steps - 1) // UNUSED_STEPS if steps else -1


def _percent(b: int) -> float:
    return -1.0 if b == 255 else b / 2.0


def _byte(percent: float) -> int:
    return 255 if percent < 0 else min(round(percent * 2), 200)
