"""Keeps the node's membership: rung by mospam or once a second, shows the facts to :class:`Membership` and does what it says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from mig import paths
from mig.adaptive.membership import Admit, Changed, Facts, Lower, Membership, Shut, State, Vacate
from mig.adaptive.rules import Rejoin, Rules
from mig.adaptive.sessions import Session
from mig.config import Config
from mig.model import NodeInfo
from mig.tasks import beat
from omdiscd.bell import Bell
from omdiscd.doors import Doors
from omdiscd.events import Events
from omdiscd.evict import Evictor
from omdiscd.guest_share import GuestShare
from omdiscd.guests import Guests
from omdiscd.jobs import Jobs
from omdiscd.presence import Presence
from omdiscd.sampler import Sampler

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks that nobody rang for."""
OWNER = "owner"
_PRESSURE = Path("/proc/pressure/memory")
_STALLED = 10.0
"""Percent of the last 10 s in which somebody waited for memory: then the owner feels the guests, whatever their priority."""
_SHORT = 0.05
"""Share of the memory that must be free while guests linger."""


_TOLD = {State.IN: "in", State.LINGERING: "in", State.LEAVING: "leaving", State.OUT: "out"}
"""What the pool is told of a node's state."""


class Owner:
    """The adaptive pool's part of one node."""

    def __init__(
        self, config: Config, sampler: Sampler, guests: Guests, jobs: Jobs, doors: Doors, evictor: Evictor, events: Events
    ) -> None:
        self.config, self.sampler, self.guests, self.jobs = config, sampler, guests, jobs
        self.doors, self.evictor, self.events = doors, evictor, events
        rules = Rules(
            config.leave_on, Rejoin.parse(config.rejoin_after), config.linger, config.owner_load, frozenset(config.ignore_sessions)
        )
        self.membership = Membership(rules)
        self.presence = Presence(sampler.table, self._not_theirs)
        self.share = GuestShare(guests, sampler.info.name, config.guest_nice)
        self.bell = Bell(paths.BELL, self.look)
        self.sessions: tuple[Session, ...] = ()
        self._begun = False

    @property
    def _me(self) -> NodeInfo:
        return self.sampler.info

    async def run(self) -> None:
        """Until cancelled."""
        hints = asyncio.ensure_future(self.presence.watch_hints(self._hints_matter))
        try:
            while True:
                await beat(LOOK)
                self.look()
        finally:
            hints.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hints

    def start(self) -> None:
        """The first look, before anybody hears that we accept guests; then the bell.  Raises ``OSError``."""
        self.look()
        self.bell.start()

    def look(self) -> None:
        """Look, and do what follows."""
        self.sessions = self.presence.sessions()
        for instruction in self.membership.step(self._facts()):
            self._do(instruction)
        self._begun = True
        self._me.pool = _TOLD[self.membership.state]
        self.share.apply()

    def _facts(self) -> Facts:
        counted = tuple(self.membership.counted(self.sessions))
        active = self.config.leave_on == "active-user"
        return Facts(
            time.monotonic(), self.sessions, self.presence.idle_s(counted), self.presence.owner_load() if active else 0.0,
            self.evictor.running(), self._felt() if self.config.linger else "",
        )  # fmt: skip

    def _do(self, instruction: Shut | Vacate | Lower | Admit | Changed) -> None:
        match instruction:
            case Shut(why=why):
                self.doors.set(OWNER, why)
            case Vacate(why=why):
                self.evictor.start(OWNER, why)
            case Lower():
                self.share.idle = True
            case Admit():
                self.share.idle = False
                self.evictor.stop(OWNER)
                self.doors.set(OWNER, "")
            case Changed(state=state, before=before, why=why):
                if state is State.IN and not self._begun:
                    return  # that it begins in the pool is no news
                log.info("%s, was %s: %s", state, before, why)
                self.events.add("pool", home=self._me.name, outcome=str(state), reason=why)

    def _felt(self) -> str:
        """By what the owner feels guests of idle priority; "" when not."""
        me = self._me
        if me.mem_total and me.mem_free < max(self.config.mem_reserve, _SHORT * me.mem_total):
            return f"memory is short, {me.mem_free >> 20} MiB are free"
        with contextlib.suppress(OSError, ValueError, IndexError):
            stalled = float(_PRESSURE.read_text().split("avg10=")[1].split()[0])
            if stalled >= _STALLED:
                return f"processes waited for memory in {stalled:.0f} % of the last 10 s"
        return ""

    def _hints_matter(self) -> bool:
        rules = self.membership.rules
        return rules.leave_on == "active-user" or (rules.leave_on != "never" and rules.rejoin.idle)

    def _not_theirs(self) -> set[int]:
        """Guests, our helpers and managed jobs, with all below them: load that is not a person at work."""
        roots = {*self.sampler.helpers(), *self.sampler.guests(), *self.jobs.table}
        return {p for r in roots for p in (r, *self.sampler.table.below(r))}

    def report(self) -> dict[str, Any]:
        """For ``mosctl pool``."""
        m, now = self.membership, time.monotonic()
        counted = {s.pid for s in m.counted(self.sessions)}
        me, blocked = self._me, m.state is State.IN and not self._me.accepting
        idle = self.presence.idle_s(tuple(s for s in self.sessions if s.pid in counted))
        return {
            "node": me.name, "state": "blocked" if blocked else str(m.state), "why": me.why_not if blocked else m.why,
            "accepting": me.accepting, "why_not": me.why_not,
            "since_s": round(now - m.since, 1), "rejoins_in_s": m.rejoins_in(now), "leave_on": self.config.leave_on,
            "rejoin_after": self.config.rejoin_after, "idle_s": round(idle, 1) if idle < 1e9 else None, "guest_share": self.share.how,
            "guests": self.evictor.running(), "frozen": [
                {"pid": k.state.pid, "home": k.state.home, "comm": k.state.comm, "reasons": self.evictor.stuck.get(k.state.host_pid, [])}
                for k in self.evictor.here() if k.state and self.evictor.stands(k.state)
            ],
            "sessions": [
                {"user": s.user, "service": s.service, "tty": s.tty, "host": s.host, "pid": s.pid, "console": s.console, "source": s.source,
                 "counts": s.pid in counted}
                for s in self.sessions
            ],
        }  # fmt: skip

    def close(self) -> None:
        """Stop listening."""
        self.bell.close()
