"""Who is alive, suspect, dead or gone: what records, rumours, signs of life and the end of patience make of the table.

SWIM's order of claims: a greater incarnation wins; in the same one ``left`` and ``dead`` beat ``suspect`` beats ``alive``.  Only a node
itself makes a new incarnation of itself, to refute a claim or because its record changed.  Beyond SWIM, evidence counts: a load entry that
was made after the suspicion began, or any datagram of the node itself, clears it here, and a claim of death is not believed by whoever has
fresher news, nor from one who was cut off himself, nor before its suspicion has lasted here or the node was asked in vain.  A load entry
that was made after the death takes it back, and any datagram of the node itself: so a node that was cut off finds all others alive as soon
as one of them tells of them, and none of them has to refute.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator

from mig.model import NodeInfo
from mig.pool import wire
from mig.pool.incarnations import changed, is_record_of
from mig.pool.message import ALIVE, DEAD, LEFT, NAMES, STALLED, SUSPECT, Rumor, Sample
from mig.pool.outcome import Changed, Outcome
from mig.pool.rumors import Rumors
from mig.pool.suspicion import EXPECTED, Suspicion, duration
from mig.pool.table import Table
from mig.pool.timing import Timing
from mig.pool.wanted import Wanted

_AFTER_DEATH = 1.0
"""Seconds by which an entry must be younger than the death of its node: as much as ages may be wrong, and more."""
_RECORD = operator.attrgetter(*(name for name, _ in wire.RECORD if name not in ("incarnation", "state")))


class Members:
    """The table, and every rule by which it changes."""

    def __init__(self, me: NodeInfo, timing: Timing) -> None:
        self.timing = timing
        self.table = Table()
        self.rumors = Rumors()
        self.id, self.incarnation = me.id, me.incarnation
        self.clash = ""
        self.refuting = False
        """Whether somebody spoke ill of us and we have to answer."""
        self.changed_record = False
        self.wanted = Wanted()
        self._reviving: set[int] = set()
        self._returned: dict[int, float] = {}
        """When nodes that we held for dead were heard again."""
        self._left = False
        self._incarnations = 0
        """How many we made in this life."""
        self._own: NodeInfo = dataclasses.replace(me)
        self._words: tuple[object, ...] = ()
        self._next_death = math.inf
        self._judged: dict[int, Suspicion] = {}
        """Suspicions that end with a death on our word; some are over already."""
        self.told: dict[int, None] = {}
        """Nodes of whose death we were told and that we have to ask, in the order of telling; some live or are dead by now."""
        self._lived: dict[int, float] = {}
        """When nodes were seen alive of whose death we had been told, by many perhaps."""
        self._answering: dict[int, float] = {}
        """When the kernel of a silent node has answered."""
        self.look_at(me)
        self.changed_record = False

    # -- ourselves ----------------------------------------------------------------------------------------------------------------

    def look_at(self, me: NodeInfo) -> None:
        """Our own entry as it is now: a changed record is a new incarnation."""
        words = (_RECORD(me), me.state == "left")
        if words == self._words:
            return
        if self._words:
            self._next(changed(self.incarnation))
            self.changed_record = True
        self._words, self._left = words, me.state == "left"
        self._own = dataclasses.replace(me, incarnation=self.incarnation, state="left" if self._left else "alive", steps=True)
        self.rumors.add(self.own())

    def own(self) -> Rumor:
        """What we say of ourselves."""
        return Rumor(self.id, self.incarnation, LEFT if self._left else ALIVE, self.id)

    def own_record(self) -> NodeInfo:
        """Our own record, never changed once it is out."""
        return self._own

    def young(self) -> bool:
        """Whether our record is news that is worth its bytes: in the first incarnations of a life."""
        return self._incarnations < 2

    def known_record(self, node: int) -> NodeInfo | None:
        """The record of a node if it is the newest that we have heard of, and the node is not gone."""
        if node == self.id:
            return self._own
        t = self.table
        if not t.knows(node) or t.states[node] > SUSPECT:
            return None
        r = t.records[node]
        if r is None or not is_record_of(r, t.incarnations[node]):
            return None
        # one of an older version takes no record for the newest whose incarnation is older than the rumour's
        return r if r.incarnation >= t.incarnations[node] else dataclasses.replace(r, incarnation=t.incarnations[node])

    def _refute(self, claimed: int) -> None:
        # a greater one than ours was of an earlier life, with another record
        self._next(changed(claimed) if claimed > self.incarnation else self.incarnation + 1)
        self._own = dataclasses.replace(self._own, incarnation=self.incarnation)
        self.rumors.add(self.own())
        self.refuting = True

    def _next(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self._incarnations += 1

    # -- what others say ----------------------------------------------------------------------------------------------------------

    def record(self, now: float, r: NodeInfo, out: Outcome) -> None:
        """A record came in."""
        if r.id == self.id:
            if (r.addr, r.port) != (self._own.addr, self._own.port) and r.boot != self._own.boot:
                self.clash = r.addr
            elif r.incarnation > self.incarnation:
                self._refute(r.incarnation)  # of an earlier life whose clock was ahead
            return
        t = self.table
        old = t.records[r.id] if t.knows(r.id) else None
        if old is not None and r.incarnation <= old.incarnation:
            return
        if r.state == "left" and old is None:
            return
        news = r.incarnation > (t.incarnations[r.id] if old else -1)
        t.put(r)
        if is_record_of(r, t.incarnations[r.id]):
            self.wanted.got(r.id)
        rebooted = old is not None and old.boot != r.boot
        before = NAMES[t.states[r.id]] if old else ""
        if r.state == "left":
            if before != "left":
                self._gone(now, r.id, LEFT, out)
        elif old is None or ((news or r.id in self._reviving) and before != "alive") or rebooted:
            self._reviving.discard(r.id)
            if before == "dead" and not rebooted:
                self._returned[r.id] = now
            t.set_state(r.id, ALIVE)
            t.made[r.id] = max(t.made[r.id], int(now * 10)) if old else int(now * 10)
            out.changes.append(Changed(r, NAMES[ALIVE], before, rebooted))
        if news:
            self.rumors.add(Rumor(r.id, r.incarnation, LEFT if r.state == "left" else ALIVE, r.id))

    def rumor(self, now: float, r: Rumor, out: Outcome) -> bool:
        """A rumour came in; whether it was news."""
        if r.id == self.id:
            if not self._left and ((r.state != ALIVE and r.incarnation >= self.incarnation) or r.incarnation > self.incarnation):
                self._refute(r.incarnation)
            return False
        if not self.table.knows(r.id):
            if r.state in (ALIVE, SUSPECT, STALLED):
                self.wanted.add(r.id)
            return False
        if r.incarnation < self.table.incarnations[r.id]:
            return False
        gone = self.table.states[r.id] in (DEAD, LEFT)
        news = False
        if r.incarnation > self.table.incarnations[r.id] and r.state in (ALIVE, SUSPECT, STALLED):
            news = self._reborn(now, r, gone, out)
        if r.state in (SUSPECT, STALLED) and not gone:
            news = self._suspected(now, r, out) or news
        elif r.state == DEAD and not gone:
            news = self._declared_dead(now, r, out)
        elif r.state == LEFT and self.table.states[r.id] != LEFT:
            self.table.incarnations[r.id] = r.incarnation
            self._gone(now, r.id, LEFT, out)
            news = True
        if news:
            self.rumors.add(r)
        return news

    def _reborn(self, now: float, r: Rumor, gone: bool, out: Outcome) -> bool:
        t = self.table
        t.incarnations[r.id] = r.incarnation
        record = t.records[r.id]
        known = record is not None and t.states[r.id] != LEFT and is_record_of(record, r.incarnation)
        if not known:
            self.wanted.add(r.id)
        if gone and known:
            t.made[r.id] = max(t.made[r.id], int(now * 10))
            self._back(now, r.id, out)
        elif gone:
            self._reviving.add(r.id)  # as soon as its record says which boot it is
        elif t.states[r.id] == SUSPECT:
            self._set(now, r.id, ALIVE, out)
        return True

    def _suspected(self, now: float, r: Rumor, out: Outcome) -> bool:
        t = self.table
        s = t.suspects.get(r.id)
        if s is None:
            if self.timing.evidence and now * 10 - t.made[r.id] < 10 * self.timing.gossip_s and t.samples[r.id] is not None:
                return False
            self._begin(now, r.id, r.by, out)
            s = t.suspects[r.id]
        elif r.by not in s.by and len(s.by) <= EXPECTED and not s.stalled and not s.told:
            s.by += (r.by,)
            shortest, longest = self.timing.suspicion(t.size())
            self._deadline(s, min(s.deadline, s.since + duration(len(s.by) - 1, t.size(), shortest, longest)))
        elif not (r.state == STALLED and not s.stalled):
            return False
        if r.state == STALLED and not s.stalled:
            s.stalled = True
            self._deadline(s, now + self.timing.stalled_s)
        return True

    def _declared_dead(self, now: float, r: Rumor, out: Outcome) -> bool:
        t = self.table
        if self.timing.evidence:
            s = t.suspects.get(r.id)
            if s is not None and s.stalled and now < s.deadline:
                return False
            surely = self.timing.suspect_s + self.timing.probe_s  # since it fell silent
            if t.samples[r.id] is not None and now * 10 - t.made[r.id] < 10 * surely:
                return False
            if now - self._lived.get(r.id, -math.inf) < surely:
                return False
            hearsay = s is None or not s.own
            if hearsay and (self._was_cut_off(now, r.by) or self._is_back(now, r.id) or not self._ripe(now, r, out)):
                return False
        t.incarnations[r.id] = r.incarnation
        self._gone(now, r.id, DEAD, out)
        return True

    def _ripe(self, now: float, r: Rumor, out: Outcome) -> bool:
        """Whether we are told of a death after a suspicion that was long enough for all who live to be heard of.  If not, we ask it
        ourselves, and it has the rest of that time where we do not come to that: the teller may have been cut off from us, and we not
        know it yet."""
        t = self.table
        shortest, longest = self.timing.suspicion(t.size())
        s, patience = t.suspects.get(r.id), shortest
        if s is None:
            self._begin(now, r.id, r.by, out)
            s, patience = t.suspects[r.id], longest
        if not s.told and now < s.since + patience:
            s.told = True
            self._judged[r.id] = s
            self.told[r.id] = None
            self._deadline(s, s.since + patience)
        return not s.told

    def _was_cut_off(self, now: float, node: int) -> bool:
        """Whether we hold it for dead, or did so a moment ago: it could not hear us either, and has buried all on our side."""
        return (self.table.knows(node) and self.table.states[node] == DEAD) or self._is_back(now, node)

    def _is_back(self, now: float, node: int) -> bool:
        """Whether it was dead for us a moment ago, and still is for others."""
        return now - self._returned.get(node, -math.inf) < self.timing.returned_s

    # -- what we see ourselves ----------------------------------------------------------------------------------------------------

    def suspect(self, now: float, node: int, out: Outcome) -> None:
        """A probe of ours was not answered, not even through others."""
        t = self.table
        if not t.knows(node) or t.states[node] > SUSPECT:
            return
        news = self._suspected(now, Rumor(node, t.incarnations[node], SUSPECT, self.id), out)
        if (s := t.suspects.get(node)) is not None:
            if s.told and not s.stalled:
                s.own = True
                self._deadline(s, now)  # as others have found before us
            else:
                self._ours(now, node, s)
        if news:
            stalled = now - self._answering.pop(node, -math.inf) < 2 * self.timing.probe_s and self.knocked(now, node, True)
            state = STALLED if stalled or t.suspects[node].stalled else SUSPECT
            self.rumors.add(Rumor(node, t.incarnations[node], state, self.id))

    def alone(self, now: float, out: Outcome) -> None:
        """Nobody at all has been heard: we are cut off, and probing one after another would take long to find it out."""
        for node in list(self.table.up()):
            if node not in self.table.suspects:
                self._begin(now, node, self.id, out)
            s = self.table.suspects[node]
            self._ours(now, node, s)
            self._deadline(s, min(s.deadline, now + self.timing.suspect_s))

    def next_told(self) -> int | None:
        """Whom to ask now of those of whose death we were told."""
        while self.told:
            node = next(iter(self.told))
            del self.told[node]
            if (s := self.table.suspects.get(node)) is not None and s.told and not s.own:
                return node
        return None

    def dying(self, now: float, node: int) -> bool:
        """Whether it is dead soon on our word, so that we go on asking it."""
        s = self.table.suspects.get(node)
        return s is not None and s.own and now < s.deadline <= now + self.timing.suspicion(self.table.size())[1]

    def knocked(self, now: float, node: int, answered: bool) -> bool:
        """Its kernel answered, or did not; whether that is to be told."""
        s = self.table.suspects.get(node)
        if s is None:
            if answered:
                self._answering[node] = now  # faster than those whom we asked to probe it
            return False
        if answered and not s.stalled:
            s.stalled = True
            self._deadline(s, now + self.timing.stalled_s)
            return True
        if answered:
            self._deadline(s, now + self.timing.stalled_s)
        elif s.stalled:
            self._deadline(s, min(s.deadline, now + self.timing.suspect_s))
        return False

    def confirm(self, now: float, node: int, out: Outcome) -> None:
        """Tell that a node is stalled, not gone."""
        self.rumors.add(Rumor(node, self.table.incarnations[node], STALLED, self.id))

    def alive(self, now: float, node: int, out: Outcome) -> None:
        """It answered us itself."""
        if self.timing.evidence and self.table.knows(node) and self.table.states[node] == SUSPECT:
            self._lives(now, node, out)

    def signs_of_life(self, now: float, fresh: list[Sample], sender: int, out: Outcome) -> None:
        """Samples that were news, and the datagram itself."""
        t = self.table
        if not self.timing.evidence:
            return
        if t.suspects:
            for node in [e.id for e in fresh if e.id in t.suspects]:
                if t.made[node] > t.suspects[node].since * 10 + 1:
                    self._lives(now, node, out)
            if sender in t.suspects:
                self._lives(now, sender, out)
        if t.gone:
            for node in [e.id for e in fresh if e.id in t.gone and t.states[e.id] == DEAD]:
                if t.made[node] > (t.gone[node] + _AFTER_DEATH) * 10:
                    self._back(now, node, out)
            if sender in t.gone and t.states[sender] == DEAD and now > t.gone[sender] + _AFTER_DEATH:
                self._back(now, sender, out)

    def shift(self, tenths: int) -> None:
        """We were away for so long: nobody is older or more suspect for it, and what we asked before says nothing."""
        self.table.shift(tenths)
        for s in self.table.suspects.values():
            s.own = s.told = False
        self._judged = {i: s for i, s in self._judged.items() if self._judges(s)}
        self._next_death = min((s.deadline for s in self._judged.values()), default=self._next_death)

    def due(self) -> float:
        """When a suspicion ends or something is to be forgotten."""
        return self._next_death

    def expired(self, now: float, out: Outcome) -> list[int]:
        """Time has passed: those that are dead now."""
        if now < self._next_death:
            return []
        t = self.table
        dead = [i for i, s in self._judged.items() if now >= s.deadline and t.suspects.get(i) is s]
        for i in dead:
            self._gone(now, i, DEAD, out)
            self.rumors.add(Rumor(i, t.incarnations[i], DEAD, self.id))
        for i in list(itertools.takewhile(lambda i: now - t.gone[i] >= self.timing.forget_s, t.gone)):
            t.forget(i)
            self._returned.pop(i, None)
            self._lived.pop(i, None)
        self._judged = {i: s for i, s in self._judged.items() if t.suspects.get(i) is s}
        ends = [s.deadline for s in self._judged.values()]
        ends += [since + self.timing.forget_s for since in itertools.islice(t.gone.values(), 1)]
        self._next_death = min(ends, default=math.inf)
        return dead

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _begin(self, now: float, node: int, by: int, out: Outcome) -> None:
        shortest, longest = self.timing.suspicion(self.table.size())
        s = Suspicion(now, 0.0, (by,))
        self._deadline(s, now + duration(0, self.table.size(), shortest, longest))
        self._set(now, node, SUSPECT, out)
        self.table.suspects[node] = s
        if self._judges(s):
            self._judged[node] = s

    def _ours(self, now: float, node: int, s: Suspicion) -> None:
        """We asked it in vain: what we had only heard begins anew, so that it has time to answer us."""
        if not s.own and not self.timing.hearsay:
            s.own, s.since = True, now
            self._judged[node] = s
            shortest, _ = self.timing.suspicion(self.table.size())
            self._deadline(s, max(s.deadline, now + shortest))

    def _judges(self, s: Suspicion) -> bool:
        """Whether it dies on our word when its time is over: hearsay may be long refuted, and its refutation lost."""
        return s.own or s.told or self.timing.hearsay

    def _deadline(self, s: Suspicion, when: float) -> None:
        s.deadline = when
        if self._judges(s):
            self._next_death = min(self._next_death, when)

    def _gone(self, now: float, node: int, state: int, out: Outcome) -> None:
        self._set(now, node, state, out)
        self.table.gone.pop(node, None)
        self.table.gone[node] = now
        self._reviving.discard(node)
        self._next_death = min(self._next_death, now + self.timing.forget_s)

    def _back(self, now: float, node: int, out: Outcome) -> None:
        self._returned[node] = now
        self._reviving.discard(node)
        self._lives(now, node, out)

    def _lives(self, now: float, node: int, out: Outcome) -> None:
        """We have seen that it does, so we tell nobody any more that it does not: it would have to refute, and all to learn of that."""
        self.rumors.take_back(node)
        if (s := self.table.suspects.get(node)) is not None and s.told:
            self._lived[node] = now
        self._set(now, node, ALIVE, out)

    def _set(self, now: float, node: int, state: int, out: Outcome) -> None:
        before, record = NAMES[self.table.states[node]], self.table.records[node]
        assert record is not None
        self.table.set_state(node, state)
        out.changes.append(Changed(record, NAMES[state], before))
