"""Sends guests away from a node that leaves the pool: by price, else home, else onto home's disk; whom not even that can take stands frozen
here.  None is ever killed.

Level-triggered: while somebody wants the node empty, every guest that runs here is sent away, also one that comes late; when nobody does
any more, frozen ones go on.  So a restarted omdiscd, a lost message or a failed attempt need no care of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from mig import paths
from mig.economy.policy import order_for_start
from mig.economy.price import NodeView
from mig.errors import BadInput, CannotMove, MigError, OutcomeUnknown
from mig.kernel import procfs
from mig.memory.ladder import LEAVING
from mig.model import GuestState, NodeInfo
from mig.tasks import Tasks
from omdiscd.events import Events
from omdiscd.guests import Guests, Link
from omdiscd.moves import Mover
from omdiscd.peers import reservation
from omdiscd.targets import Targets

log = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks when nothing is heard."""
AT_ONCE = 3
"""Guests that leave at the same time: a move waits for processes to start at both ends more than for the line."""
AT_ONCE_FAST = 8
AGAIN = 3.0
"""Seconds after which a guest that nobody took is tried again."""
ASKED = 3
"""Nodes that are asked before a guest goes home."""
_SETTLE = 3.0
"""Seconds in which the keeper of a guest whose move has failed says that it runs again."""
ADMINISTRATOR = "administrator"
_GOING_ON = ("moving", "in-doubt", "settling")

News = Callable[[dict[str, Any]], None]


class Evictor:
    """Empties this node while :attr:`wanted` is not empty."""

    def __init__(self, mover: Mover, guests: Guests, targets: Targets, events: Events) -> None:
        self.mover, self.guests, self.targets, self.events = mover, guests, targets, events
        self.wanted: dict[str, str] = {}
        """Who wants this node empty, and why."""
        self.fast = False
        self.stuck: dict[int, list[str]] = {}
        """By pid here: why a guest could not leave."""
        self.listeners: list[News] = []
        self._busy: set[int] = set()
        self._tried: dict[int, float] = {}
        self._wake = asyncio.Event()
        self._tasks = Tasks()
        self._flag = paths.RUN / "expelled"
        if self._flag.exists():
            self.wanted[ADMINISTRATOR] = "its administrator expels all guests"

    # -- who wants what -----------------------------------------------------------------------------------------------------------

    def start(self, who: str, why: str, *, fast: bool = False) -> None:
        """``who`` wants this node empty.  ``fast``: nobody is asked who would be best, everybody goes home, many at once."""
        if who == ADMINISTRATOR:
            self._flag.touch()
        self.wanted[who] = why
        self.fast = self.fast or fast
        self._tried.clear()
        self._wake.set()

    def stop(self, who: str) -> None:
        """``who`` has nothing against guests any more."""
        if who == ADMINISTRATOR:
            self._flag.unlink(missing_ok=True)
        if self.wanted.pop(who, None) is not None and not self.wanted:
            self.fast = False
        self._wake.set()

    def here(self) -> list[Link]:
        """Keepers of guests that run here and belong elsewhere."""
        me = self.targets.me().name
        return [k for k in self.guests.keepers() if k.state and k.state.host_pid and k.state.home != me]

    def stands(self, s: GuestState) -> bool:
        """Whether it stands frozen, as nobody could take it; also while that is tried again."""
        return s.state == "frozen" or (s.state == "moving" and s.host_pid in self.stuck and bool(self.wanted))

    def running(self) -> int:
        """How many of them still run, or move."""
        return sum(1 for k in self.here() if k.state and k.state.state != "frozen")

    @property
    def busy(self) -> bool:
        """Whether somebody is being sent away: his keeper may be gone before the answer has come that tells where he went."""
        return bool(self._busy)

    def look_soon(self) -> None:
        """Something about guests has changed."""
        self._wake.set()

    # -- the work -----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._look()
                with contextlib.suppress(TimeoutError):  # whoever comes, or wants somebody gone, wakes us
                    await asyncio.wait_for(self._wake.wait(), LOOK if self.here() else None)
                self._wake.clear()
        finally:
            self._tasks.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        links = {k.state.host_pid: k for k in self.here() if k.state}
        self.stuck = {p: r for p, r in self.stuck.items() if p in links}
        self._tried = {p: t for p, t in self._tried.items() if p in links}
        for pid, k in links.items():
            assert k.state is not None
            if pid in self._busy or k.state.state in _GOING_ON:
                continue
            if not self.wanted:
                if k.state.state == "frozen":
                    self._begin(pid, self._go_on(k))
            elif len(self._busy) < (AT_ONCE_FAST if self.fast else AT_ONCE) and now - self._tried.get(pid, -AGAIN) >= AGAIN:
                self._tried[pid] = now
                self._begin(pid, self._send_away(k, k.state))

    def _begin(self, pid: int, work: Any) -> None:
        async def do() -> None:
            try:
                await work
            finally:
                self._busy.discard(pid)
                self._wake.set()

        self._busy.add(pid)
        self._tasks.spawn(do())

    async def _send_away(self, k: Link, state: GuestState) -> None:
        me = self.targets.me().name
        why = f"{me} is to be empty: {'; '.join(self.wanted.values())}"
        failures: list[str] = []
        async for to, store in self._places(state, failures):
            try:
                subject = self.mover.subject(state.host_pid)
                timeout = self.mover.targets.config.move_timeout_s
                # a lock or a list of nodes keeps it from going just anywhere, never from going home
                memory = LEAVING if store or ADMINISTRATOR in self.wanted else "auto"
                reason = f"{why}; {'; '.join(failures)}: it is stored" if store else why
                await self.mover.move(subject, to, timeout=timeout, reason=reason, auto=to.name != state.home, memory=memory, store=store)
            except BadInput as e:
                log.info("process %d of %s: %s", state.pid, state.home, e)
                return  # it has ended, or gone by itself
            except OutcomeUnknown as e:
                log.warning("process %d of %s: %s", state.pid, state.home, e)
                return
            except (MigError, OSError) as e:
                text = "; ".join(getattr(e, "reasons", [])) or str(e)
                if text not in failures:
                    failures.append(text)
                if isinstance(e, CannotMove) and to.name == state.home and not store:
                    break  # home refuses nothing: it is an obstacle of its own, or home cannot be reached
            else:
                self._tell(state, outcome="stored" if store else "arrived", to=to.name)
                return
            if procfs.state(state.host_pid) in (None, "Z") or k.closed or not self.wanted:
                return
        self.stuck[state.host_pid] = failures
        if not await _settled(k):
            return  # somebody else moves it, or it has ended
        assert k.state is not None
        if k.state.state != "frozen":
            await self._hold(k, True)
            log.warning("process %d (%s) of %s could not leave and stands frozen: %s", state.pid, state.comm, state.home, failures)
            self.events.add(
                "frozen", pid=state.pid, comm=state.comm, home=state.home, outcome="frozen",
                reason="nobody can take it: " + "; ".join(failures), **{"from": me},
            )  # fmt: skip
        self._tell(state, outcome="frozen", reasons=failures)

    async def _places(self, state: GuestState, failures: list[str]) -> AsyncIterator[tuple[NodeInfo, bool]]:
        """Where it may go, the best first, and whether to be stored there: nodes of the pool by price, then home if it has the memory, then
        home's disk, and home whatever it has.  Nodes are asked one at a time, when it is their turn."""
        home = next((n for n in self.targets.nodes() if n.name == state.home), None)
        if not self.fast:
            who = reservation(home.id if home else 0, state.pid)
            nodes = {n.id: n for n in self.targets.open()}
            c = self.mover.candidate(state.host_pid, state.comm)
            for v in order_for_start([NodeView.of(n) for n in nodes.values()], c.k, c.rss)[:ASKED]:
                to: NodeInfo = nodes[v.id]
                if home is not None and to.id == home.id:
                    break  # nobody is better than home
                live = await self.targets.ask(to, who)
                if live is None or not live.fits(c.rss):
                    continue
                refused, _ = await self.targets.reserve(to, who, c.k, c.rss)
                if not refused:
                    yield to, False
        if home is None:
            return
        if room := await self.targets.has_room(home, state.rss):
            yield home, False
        else:
            failures.append(f"{home.name} has not the memory for its {state.rss >> 20} MiB")
        yield home, True
        if not room:
            yield home, False

    async def _go_on(self, k: Link) -> None:
        await self._hold(k, False)
        if k.state is not None:
            log.info("process %d (%s) of %s goes on: this node is in the pool again", k.state.pid, k.state.comm, k.state.home)
            self.events.add(
                "frozen", pid=k.state.pid, comm=k.state.comm, home=k.state.home, to=self.targets.me().name, outcome="goes on",
                reason="the node is in the pool again",
            )  # fmt: skip

    @staticmethod
    async def _hold(k: Link, on: bool) -> None:
        with contextlib.suppress(OSError):
            i, answers = await k.order(op="shelve" if on else "unshelve")
            try:
                await asyncio.wait_for(answers.get(), 10)
            except TimeoutError:
                log.warning("the keeper %s does not answer", k.path.stem)
            finally:
                k.done(i)

    def _tell(self, state: GuestState, **news: Any) -> None:
        for listener in list(self.listeners):
            listener({"pid": state.pid, "comm": state.comm, "home": state.home, "here": state.host_pid, **news})


async def _settled(k: Link) -> bool:
    """Whether nothing is done with the guest any more: its keeper's word comes by another way than the answer to the move."""
    end = time.monotonic() + _SETTLE
    while not k.closed and k.state is not None and k.state.state in _GOING_ON and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return not k.closed and k.state is not None and k.state.state not in _GOING_ON
