"""One node's view of its pool: fed with datagrams and time, it returns what to send, whom to knock at, and what has changed.

``now`` is any clock in seconds that never goes back; it should go on while the machine sleeps, so that a suspended node knows that it was
away.  Everything else that could surprise (chance, network) comes in from outside as well.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from mig.model import NodeInfo
from mig.pool import repair, wire
from mig.pool.loads import Loads
from mig.pool.members import Members
from mig.pool.message import ACK, ASK, DEAD, HELLO, LEFT, NACK, NEWS, PING, REPAIR, SUSPECT, Message, Rumor, Sample
from mig.pool.outcome import GROUP, Changed, Knock, Outcome, Send
from mig.pool.probes import Probes
from mig.pool.table import load_of
from mig.pool.timing import Timing
from mig.pool.urgent import Urgent

__all__ = ["GROUP", "Changed", "Knock", "Outcome", "Pool", "Send", "Timing"]

_ANSWERS = 8
"""Nodes that answer a hello to the group, on average: all of a large pool would be a storm."""
_HELLOS = 4
"""Hellos to the group of all nodes together in ``hello_s``: everybody hears each of them."""
_PASS_ON = 3
"""Random nodes to which urgent news are passed on: e^-3 of all do not hear them so, and soon after otherwise."""
_WANTED = 32
"""Records asked for in one datagram."""
_BURST = 8
"""Datagrams with records in answer to one."""


class Pool:
    """The machine.  Inputs are :meth:`tick`, :meth:`datagram`, :meth:`urgent` and :meth:`knocked`."""

    def __init__(self, me: NodeInfo, seeds: Iterable[tuple[str, int]], timing: Timing, rng: random.Random, now: float) -> None:
        self.seeds, self.timing, self.rng = list(seeds), timing, rng
        self.members = Members(me, timing)
        self.table = self.members.table
        self.loads = Loads(self.table, me.id, me.incarnation // 100 - int(now * 10))
        self.probes = Probes(self.table, timing, rng)
        self.news = Urgent(timing.gather_s)
        self.me = me
        self._started = self._ticked = self._heard = now
        self._hello_due = self._group_due = self._publish_due = now
        self._gossip_due = now
        self._probe_due = now + timing.probe_s * rng.random()
        self._repair_due = now + timing.repair_s * rng.random()
        self._part = rng.randrange(1 << 16)

    # -- looking ------------------------------------------------------------------------------------------------------------------

    @property
    def clash(self) -> str:
        """Address of another node that uses our id; "" while there is none."""
        return self.members.clash

    def nodes(self, now: float) -> list[NodeInfo]:
        """All known nodes, ourselves included, by id, with their ages."""
        t = int(now * 10)
        return sorted([dataclasses.replace(self.me, age_s=0.0), *(self.table.info(i, t) for i in self.table.ids)], key=lambda n: n.id)

    def records(self) -> list[NodeInfo]:
        """What seldom changes of all known nodes, ourselves included: cheaper than :meth:`nodes`."""
        return [self.me, *(r for i in self.table.ids if (r := self.table.records[i]) is not None)]

    def due(self) -> float:
        """When :meth:`tick` is wanted next."""
        own = min(self._hello_due, self._gossip_due, self._probe_due, self._repair_due)
        return min(own, self.probes.due(), self.members.due(), self.news.due())

    # -- inputs -------------------------------------------------------------------------------------------------------------------

    def tick(self, now: float, me: NodeInfo) -> Outcome:
        """Time has passed; ``me`` is our own fresh entry."""
        out = Outcome()
        self._look_at_ourselves(now, me)
        for node in self.members.expired(now, out):
            self._at_once(now, [Rumor(node, self.table.incarnations[node], DEAD, self.me.id)], [], out, but=node)
        if now >= self.news.due():
            self._pass_on(now, out)
        if now >= self._publish_due:
            self._publish_due = now + self.timing.gossip_s
            self.loads.publish(load_of(me), int(now * 10))
        if now >= self._hello_due:
            self._hellos(now, out)
        if now >= self._gossip_due:
            self._gossip(now, out)
        if now >= self._probe_due:
            self._probe_due = now + self.timing.probe_s
            if probe := self.probes.start(now):
                self._to(*probe, out)
                self._with_loads(now, probe[1])
        self._look_at_probes(now, out)
        self._verify(now, out)
        if now - self._heard > self.timing.suspect_s and self.timing.evidence:
            self._heard = now
            self.members.alone(now, out)
            # on our side of a cut there may be a few others, whom we seldom meet among those that are gone: whoever answers is cleared
            for node in self.table.up():
                self._send(node, Message(PING), out)
        if now >= self._repair_due:
            self._repair_due = now + self.timing.repair_s * (0.75 + self.rng.random() / 2)
            self._repair(out)
        return out

    def urgent(self, now: float, me: NodeInfo) -> Outcome:
        """Our own entry changed in a way that others must know at once (blocked, a login, leaving)."""
        out = Outcome()
        self._look_at_ourselves(now, me)
        self.loads.publish(load_of(me), int(now * 10))
        rumors = [self.members.own()] if me.state == "left" else []
        up = self.table.up()
        for node in up if len(up) <= 4 * self.timing.fanout else self.rng.sample(up, 2 * self.timing.fanout):
            m = Message(NEWS, urgent=True, rumors=list(rumors))
            self._fill(m, now, own_record=self.members.changed_record)
            self._send(node, m, out)
        self.members.changed_record = False
        return out

    def knocked(self, now: float, node: int, answered: bool) -> Outcome:
        """Whether the kernel of a node answered."""
        out = Outcome()
        self._wake(now)
        if self.members.knocked(now, node, answered):
            self.members.confirm(now, node, out)
        return out

    def datagram(self, now: float, source: tuple[str, int], m: Message, *, group: bool = False) -> Outcome:
        """A message came in."""
        out = Outcome()
        self._wake(now)
        for r in m.records:
            self.members.record(now, r, out)
        self._heard = now
        if m.sender == self.me.id and source[0].partition("%")[0] != self.me.addr:
            self.members.clash = source[0]
        if m.sender == self.me.id:
            return out  # our own hello to the group; another one's record with our id was seen above
        news = [r for r in m.rumors if self.members.rumor(now, r, out)]
        tenths = int(now * 10)
        fresh, strangers = self.loads.take(m.loads, tenths) if m.loads else ([], [])
        self.members.signs_of_life(now, fresh, m.sender, out)
        if m.urgent and (news or fresh):
            self._at_once(now, news, fresh, out, but=m.sender)
        self._answer(now, source, m, out, group=group)
        self._tell_and_ask(now, source, m, strangers, out)
        self._verify(now, out)
        if news or m.records:
            self._hurry(now)
        if self.members.refuting:
            self._refute(now, source, out)
        return out

    # -- time ---------------------------------------------------------------------------------------------------------------------

    def _wake(self, now: float) -> None:
        slept = now - self._ticked
        if slept > self.timing.slept_s + self.timing.gossip_s:
            self.members.shift(int(slept * 10))
            self.probes.slept()
            self._heard = now
        self._ticked = now

    def _look_at_ourselves(self, now: float, me: NodeInfo) -> None:
        self._wake(now)
        self.me = me
        self.members.look_at(me)

    def _hellos(self, now: float, out: Outcome) -> None:
        early = now - self._started < self.timing.early_s
        self._hello_due = now + (self.timing.gossip_s if early else self.timing.hello_s)
        t, mine = self.table, (self.me.addr, self.me.port)
        up = {t.address(i) for i in t.up()} if self.seeds else set()
        to = [s for s in self.seeds if s not in up and s != mine]
        # dead nodes too: a cable that is plugged in again joins both halves where multicast does not reach
        lost = [i for i in t.gone if t.states[i] == DEAD]
        to += [t.address(i) for i in (lost if len(lost) <= 6 else self.rng.sample(lost, 6))]
        if early or now >= self._group_due:
            to.insert(0, GROUP)
            self._group_due = now + self.timing.hello_s * max(1.0, t.size() / _HELLOS) * (0.75 + self.rng.random() / 2)
        for a in dict.fromkeys(to):
            out.sends.append(Send(a, Message(HELLO, records=[self.members.own_record()], loads=[self.loads.own(int(now * 10))])))

    def _gossip(self, now: float, out: Outcome) -> None:
        self._gossip_due = now + self._interval() * (0.9 + self.rng.random() / 5)
        up = self.table.up()
        if up:
            node = self.rng.choice(up)
            m = Message(NEWS)
            self._fill(m, now)
            if m.loads or m.rumors:
                self._send(node, m, out)

    def _interval(self) -> float:
        """Seconds between two datagrams with news."""
        if not wire.all_fit(self.table.size()):
            return self.timing.gossip_s / self.timing.fanout
        at_rest = self._probes_tell() and not self.members.rumors
        return self.timing.gossip_s / (1 if at_rest else self.timing.small_fanout)

    def _probes_tell(self) -> bool:
        """Where all loads fit into one datagram, probes and their answers carry them too: half as many datagrams, each way."""
        return self.timing.loads and wire.all_fit(self.table.size())

    def _hurry(self, now: float) -> None:
        """There may be a rumour to tell."""
        if self._probes_tell():
            self._gossip_due = min(self._gossip_due, now + self._interval())

    def _look_at_probes(self, now: float, out: Outcome) -> None:
        if now < self.probes.due():
            return
        sends, knocks, silent = self.probes.look(now)
        for node, m in sends:
            self._to(node, m, out)
        for node in knocks:
            if self.timing.knock and self.table.states[node] <= SUSPECT:
                out.knocks.append(Knock(node, self.table.address(node)))
        for node in silent:
            self.members.suspect(now, node, out)
            if self.members.dying(now, node) and (probe := self.probes.start(now, node)):
                self._to(*probe, out)
            self._hurry(now)

    def _verify(self, now: float, out: Outcome) -> None:
        """Ask those of whose death we were told."""
        while self.members.told and self.probes.room(now) and (node := self.members.next_told()) is not None:
            self._send(*self.probes.verify(now, node), out)

    def _repair(self, out: Outcome) -> None:
        up = self.table.up()
        if up:
            self._part += 1
            d = repair.digest(self.table, self.members.own(), self._part)
            self._send(self.rng.choice(up), Message(REPAIR, digest=d), out)

    # -- answers ------------------------------------------------------------------------------------------------------------------

    def _answer(self, now: float, source: tuple[str, int], m: Message, out: Outcome, *, group: bool) -> None:
        if m.kind == PING:
            reply = Message(ACK, number=m.number)
            reply.rumors = self.members.rumors.take(wire.rumors_that_fit(reply), self._limit())
            self._with_loads(now, reply)
            out.sends.append(Send(source, reply))
        elif m.kind in (ACK, NACK):
            if passed := self.probes.answered(m):
                self._to(*passed, out)
            if m.kind == ACK:
                self.members.alive(now, m.subject or m.sender, out)
        elif m.kind == ASK:
            if ping := self.probes.asked(now, m):
                self._to(*ping, out)
        elif m.kind == HELLO:
            if not group or self.rng.random() < _ANSWERS / self.table.size():
                reply = Message(NEWS)
                self._fill(reply, now, own_record=True)
                out.sends.append(Send(source, reply))
        elif m.kind == REPAIR and m.digest:
            self._compare(source, m, out)

    def _compare(self, source: tuple[str, int], m: Message, out: Outcome) -> None:
        assert m.digest
        held = repair.differing(self.table, self.members.own(), m.digest)
        if not held:
            return
        reply = Message(REPAIR, number=1)
        if m.number == 0:  # the first of two: he compares ours as well
            d = m.digest
            reply.digest = d._replace(sums=repair.sums(self.table, self.members.own(), d.buckets, d.first, len(d.sums)))
        self.rng.shuffle(held)
        reply.rumors = held[: wire.rumors_that_fit(reply)]
        out.sends.append(Send(source, reply))

    def _tell_and_ask(self, now: float, source: tuple[str, int], m: Message, strangers: list[int], out: Outcome) -> None:
        """Answer what is wanted; ask for what we lack; tell one whom we hold for dead that we do."""
        if m.wants:
            self._give(source, m.wants, out)
        if not self.table.knows(m.sender):
            strangers.append(m.sender)
        elif self.table.states[m.sender] in (DEAD, LEFT):
            accusation = Rumor(m.sender, self.table.incarnations[m.sender], self.table.states[m.sender], self.me.id)
            out.sends.append(Send(source, Message(NEWS, rumors=[accusation], records=[self.members.own_record()])))
        wanted = self.members.wanted
        for i in strangers:
            wanted.add(i)
        if wanted and (ask := wanted.ask(now, _WANTED)):
            out.sends.append(Send(source, Message(NEWS, wants=ask)))

    def _give(self, source: tuple[str, int], wants: list[int], out: Outcome) -> None:
        reply = Message(NEWS)
        sent, room = 0, wire.BUDGET - wire.size(reply)
        for i in wants[: 4 * _WANTED]:
            r = self.members.known_record(i)
            if r is None:
                continue
            size = wire.record_size(r)
            if size > room:
                out.sends.append(Send(source, reply))
                reply, sent = Message(NEWS), sent + 1
                room = wire.BUDGET - wire.size(reply)
                if sent == _BURST:
                    return
            room -= size
            reply.records.append(r)
        if reply.records:
            out.sends.append(Send(source, reply))

    def _refute(self, now: float, source: tuple[str, int], out: Outcome) -> None:
        self.members.refuting = False
        up = self.table.up()
        to = [self.table.address(i) for i in self.rng.sample(up, min(len(up), 2 * _PASS_ON))]
        for a in dict.fromkeys([*to, source]):  # no set: its order would be chance of our own
            m = Message(NEWS, urgent=True, rumors=[self.members.own()], records=[self.members.own_record()])
            m.loads = [self.loads.own(int(now * 10))]
            out.sends.append(Send(a, m))

    # -- sending ------------------------------------------------------------------------------------------------------------------

    def _at_once(self, now: float, rumors: list[Rumor], loads: list[Sample], out: Outcome, *, but: int) -> None:
        if self.timing.urgent:
            self.news.put(rumors, loads)
            if now >= self.news.due():
                self._pass_on(now, out, but)

    def _pass_on(self, now: float, out: Outcome, but: int = -1) -> None:
        m = Message(NEWS, urgent=True)
        m.rumors = self.news.rumors(now, wire.rumors_that_fit(m))
        samples = [s for i in self.news.loads(wire.loads_that_fit(m)) if (s := self.table.samples[i]) is not None]
        m.loads = self.loads.as_groups(samples, int(now * 10))
        up = self.table.up()
        for node in self.rng.sample(up, min(len(up), _PASS_ON)):
            if node != but:
                self._send(node, m, out)

    def _fill(self, m: Message, now: float, *, own_record: bool = False) -> None:
        """Load a message with as much news as has room."""
        if own_record:
            m.records.append(self.members.own_record())
        m.rumors += self.members.rumors.take(min(8, wire.rumors_that_fit(m)), self._limit())
        if any(r.id == self.me.id for r in m.rumors) and not own_record and self.members.young():
            m.records.append(self.members.own_record())
        if self.timing.loads:
            m.loads = self.loads.freshest(wire.loads_that_fit(m), int(now * 10))

    def _with_loads(self, now: float, m: Message) -> None:
        if self._probes_tell():
            m.loads = self.loads.freshest(wire.loads_that_fit(m), int(now * 10))

    def _limit(self) -> int:
        return self.timing.transmissions(self.table.size())

    def _to(self, node: int, m: Message, out: Outcome) -> None:
        """A probe, or an answer to one, with rumours on its back; the one about its receiver first, so that he can refute it.  Whoever is
        dead as others say gets none: most would be lost, and an answer will do."""
        if not self.table.knows(node):
            return  # a probe for somebody of whom we have no record
        s = self.table.suspects.get(node)
        if s is None or not s.told:
            if s is not None:
                m.rumors.append(Rumor(node, self.table.incarnations[node], SUSPECT, self.me.id))
            m.rumors += self.members.rumors.take(6, self._limit())
        self._send(node, m, out)

    def _send(self, node: int, m: Message, out: Outcome) -> None:
        if self.table.knows(node):
            out.sends.append(Send(self.table.address(node), m))


def left(out: Outcome) -> bool:
    """Whether an outcome says that somebody left; for tests and tools."""
    return any(c.state == "left" for c in out.changes) or any(r.state == LEFT for s in out.sends for r in s.message.rumors)
