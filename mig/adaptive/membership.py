"""The node's membership in the pool, as its owner's presence decides: facts in, instructions out.

States: ``in-pool`` (guests are welcome) · ``lingering`` (an option: no new guests, those that are here run at idle priority and stay as
long as the owner does not feel them, after Ryu & Hollingsworth, "Exploiting Fine-Grained Idle Periods in Networks of Workstations", IEEE
TPDS 11(7), 2000) · ``leaving`` (guests are being sent away) · ``out`` (no guest runs here).

Pure: no clock, no I/O.  ``now`` is any monotonic time in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from mig.adaptive.rules import Rules
from mig.adaptive.sessions import Session

FRESH = 15.0
"""Seconds for which a touch of a key counts as somebody being there now.  The kernel notes a terminal's input only every 8 s."""


class State(StrEnum):
    """Where the node stands."""

    IN = "in-pool"
    LINGERING = "lingering"
    LEAVING = "leaving"
    OUT = "out"


@dataclass(frozen=True)
class Facts:
    """What is seen at ``now``.

    ``idle_s``: since anybody touched keyboard, mouse or terminal, logged in or out; inf where nothing is known.  ``owner_load``: runnable
    threads of local people's own processes (no guests, no managed jobs).  ``guests``: other nodes' that run here, frozen ones not
    counted.  ``felt``: by what the owner feels them in spite of their idle priority; "" when not.
    """

    now: float
    sessions: tuple[Session, ...] = ()
    idle_s: float = math.inf
    owner_load: float = 0.0
    guests: int = 0
    felt: str = ""


# -- instructions -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shut:
    """No new guests; ``why`` goes to the pool and names nobody."""

    why: str


@dataclass(frozen=True)
class Vacate:
    """Send all guests away, and those that come late."""

    why: str


@dataclass(frozen=True)
class Lower:
    """Guests run only when nobody else wants the CPU."""


@dataclass(frozen=True)
class Admit:
    """Guests are welcome: end sending them away, let frozen ones go on, give them their usual priority."""


@dataclass(frozen=True)
class Changed:
    """For the log and ``mosctl events``; ``why`` names people of this machine."""

    state: State
    before: State
    why: str


Instruction = Shut | Vacate | Lower | Admit | Changed


@dataclass
class Membership:
    """One node's; ``step`` takes the facts and returns what is to be done.  The first step always says which of the two it is."""

    rules: Rules
    state: State = State.OUT
    why: str = ""
    """Why it is not in the pool, in words that name people; "" when it is."""
    public: str = ""
    """The same for the pool, naming nobody."""
    since: float = 0.0
    """When the state was entered."""
    last_sign: float = -math.inf
    """When the owner was last seen to be there."""
    _begun: bool = field(default=False, repr=False)
    _there: bool = field(default=False, repr=False)

    def counted(self, sessions: tuple[Session, ...]) -> list[Session]:
        """The sessions that matter to the rules."""
        if self.rules.leave_on == "never":
            return []
        mine = [s for s in sessions if s.service not in self.rules.ignored]
        return [s for s in mine if s.console] if self.rules.leave_on == "console-login" else mine

    def step(self, f: Facts) -> list[Instruction]:
        """The facts of a moment; call it whenever something may have changed, and each second."""
        private, public = self._sign(f)
        first, self._begun = not self._begun, True
        self._there = bool(private)
        if first:
            self.since = f.now
        if first or self.state is State.IN:
            return self._leave(f, private, public) if private else self._return(f) if first else []
        if not private and f.now - self.last_sign >= self.rules.rejoin.seconds:
            return self._return(f)
        news: list[Instruction] = []
        if private:
            self.why = private
            if public != self.public:
                self.public = public
                news = [Shut(self._for_the_pool())]
        match self.state:
            case State.LINGERING if f.felt:
                self.why += f"; its owner feels the guests: {f.felt}"
                return [*self._enter(State.LEAVING, f), Vacate(f"its owner feels the guests: {f.felt}")]
            case State.LEAVING if not f.guests:
                return self._enter(State.OUT, f)
            case State.OUT if f.guests:
                # one that was on its way here while the door was shut
                return [*self._enter(State.LEAVING, f), Vacate(self.public)]
        return news

    def rejoins_in(self, now: float) -> float | None:
        """Seconds until it is back if nobody shows up; None when it is in the pool, or when somebody is there now."""
        if self.state is State.IN or self._there:
            return None
        return max(0.0, self.last_sign + self.rules.rejoin.seconds - now)

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _sign(self, f: Facts) -> tuple[str, str]:
        """Why the owner counts as being there now, in private and in public words; "" when not.  Notes the last sign."""
        sessions = self.counted(f.sessions)
        active = self.rules.leave_on == "active-user"
        watching = self.rules.rejoin.idle or active
        private, public = "", ""
        if active and f.owner_load >= self.rules.owner_load:
            private = public = f"local users' own work keeps {f.owner_load:.1f} threads busy"
            self.last_sign = max(self.last_sign, f.now)
        if sessions and watching:
            self.last_sign = max(self.last_sign, f.now - f.idle_s)
        if sessions and (not watching or f.idle_s < self._fresh()):
            newest = max(sessions, key=lambda s: s.since)
            others = f" and {len(sessions) - 1} more" if len(sessions) > 1 else ""
            private, public = f"{newest.words()}{others} logged in", newest.public()
            if watching:
                private = f"{newest.words()}{others} at work, last seen {f.idle_s:.0f} s ago"
            else:
                self.last_sign = max(self.last_sign, f.now)
        return private, public

    def _fresh(self) -> float:
        return FRESH if self.rules.leave_on == "active-user" else min(FRESH, self.rules.rejoin.seconds)

    def _leave(self, f: Facts, private: str, public: str) -> list[Instruction]:
        self.why, self.public = private, public
        if self.rules.linger and not f.felt:
            return [*self._enter(State.LINGERING, f), Lower()]
        # priority first: the owner must not wait for the guests to have gone
        return [*self._enter(State.LEAVING, f), Lower(), Vacate(public)]

    def _return(self, f: Facts) -> list[Instruction]:
        before, self.state, self.why, self.public = self.state, State.IN, "", ""
        seen = "nobody is seen" if self.last_sign == -math.inf else f"nobody has been here for {f.now - self.last_sign:.0f} s"
        self.since = f.now
        return [Admit(), Changed(State.IN, before, seen)]

    def _enter(self, state: State, f: Facts) -> list[Instruction]:
        before, self.state, self.since = self.state, state, f.now
        return [Shut(self._for_the_pool()), Changed(state, before, self.why)]

    def _for_the_pool(self) -> str:
        return f"{self.state}: {self.public}"
