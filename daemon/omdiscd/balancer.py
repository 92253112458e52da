"""Sends processes away from here when that pays: drives the policy, asks targets for their live state, orders the moves."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from mig.config import Config
from mig.economy import manager, usher, words
from mig.economy.gaps import Gaps
from mig.economy.judge import Candidate
from mig.economy.manager import Ask, Dialogue, Enact
from mig.economy.policies import Situation, make
from mig.errors import BadInput, CannotMove, MigError
from mig.model import NodeInfo
from omdiscd.candidates import Candidates
from omdiscd.events import Events
from omdiscd.guests import Guests
from omdiscd.jobs import Jobs
from omdiscd.moves import Mover
from omdiscd.peers import reservation
from omdiscd.sampler import Sampler
from omdiscd.shares import Shares
from omdiscd.switches import Switches
from omdiscd.targets import Targets

log = logging.getLogger(__name__)


class Balancer:
    """Decides every ``balance_s``."""

    def __init__(
        self, config: Config, sampler: Sampler, guests: Guests, jobs: Jobs, mover: Mover, targets: Targets, events: Events,
        switches: Switches,
    ) -> None:  # fmt: skip
        self.config, self.sampler, self.guests, self.jobs = config, sampler, guests, jobs
        self.mover, self.targets, self.events, self.switches = mover, targets, events, switches
        self.candidates = Candidates(config, sampler, guests, jobs, mover, switches)
        self.policy = make(config.policy)
        self.gaps = Gaps()
        self.shares = Shares(jobs, guests, sampler)
        self._moving: set[asyncio.Task[None]] = set()
        self._rng = random.Random()

    @property
    def reasons(self) -> dict[int, list[str]]:
        """Why a process cannot move, as last seen, by pid."""
        return self.candidates.reasons

    async def run(self) -> None:
        """Balance until cancelled."""
        while True:
            # a little chance keeps nodes that were started together from deciding together
            await asyncio.sleep(self.config.balance_s * self._rng.uniform(0.8, 1.2))
            self.jobs.sweep()
            self.candidates.forget()
            if self.config.age_shares and ((wanted := self.shares.wanted()) or self.shares.used):
                await asyncio.to_thread(self.shares.apply, wanted)
            if self.config.auto != "none" and not self.switches.quiet:
                await self.balance()
            else:
                self.gaps.forget()

    def situation(self) -> Situation:
        """What this node knows now."""
        k, mem = self.mover.leaving()
        me, others = self.sampler.mine().plus(-k, -mem), self.targets.views()
        short = usher.shortage(me, self.targets.knobs.mem_reserve) > 0
        return Situation(
            me, others, self.candidates.all(idle=short), self.targets.knobs, len(others) + 1,
            active=self._active(), local=max(0.0, self.sampler.loads.local - k),
            lasted=self.gaps.look(time.monotonic(), me, others),
        )  # fmt: skip

    def _active(self) -> int:
        """Moves away from here that are under way; starts are hardly anything to send."""
        return max(0, len(self.mover.active) - self.jobs.starting)

    async def balance(self) -> None:
        """One decision: start the moves that pay, as many as may run at once."""
        situation = self.situation()  # also when nothing may move: it is how long a difference lasts that counts
        most = min(manager.MOVES, self.config.transfers - self._active())
        if most <= 0 or not situation.candidates:
            return
        nodes = {n.id: n for n in self.targets.open()}
        decision = Dialogue(manager.moves(self.policy, situation, most=most))
        while (step := decision.step) is not None:
            if isinstance(step, Ask):
                decision.answer(await self.targets.ask(nodes[step.node], self._who(step.candidate.pid)))
            else:
                decision.answer(await self._start(step, nodes[step.target.id]))

    async def _start(self, x: Enact, to: NodeInfo) -> bool:
        """Reserve the place and begin; False when it cannot be done."""
        c = x.candidate
        if await self.candidates.cannot(c.pid):
            return False
        refused, _ = await self.targets.reserve(to, self._who(c.pid), c.k, c.rss)
        if refused:
            log.debug("process %d (%s) does not go to %s: %s", c.pid, c.comm, to.name, "; ".join(refused))
            return False
        task = asyncio.ensure_future(self._move(x, to))
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)
        await asyncio.sleep(0)  # lets the move begin, so that it counts as leaving from here on
        return True

    async def _move(self, x: Enact, to: NodeInfo) -> None:
        c, me = x.candidate, self.targets.me().name
        why = words.moved(x, me)
        log.info("process %d (%s) goes to %s: %s", c.pid, c.comm, to.name, why)
        event = {"pid": c.pid, "comm": c.comm, "from": me, "to": to.name, "reason": why, "why": x.kind, "policy": self.policy.name}
        self.events.add("balance", **event, **words.figures(x.verdict))
        p = self.sampler.table.processes.get(c.pid)
        start = p.start if p else 0
        try:
            await self.mover.move(self.mover.subject(c.pid), to, timeout=self.config.move_timeout_s, reason=why, auto=True)
            self.candidates.moved(c.pid, start)
        except BadInput as e:
            log.info("process %d (%s): %s", c.pid, c.comm, e)  # it ended meanwhile
        except (MigError, OSError) as e:
            reasons = getattr(e, "reasons", [])
            log.warning("process %d (%s) did not go to %s: %s %s", c.pid, c.comm, to.name, e, "; ".join(reasons))
            self.candidates.failed(c.pid, start, (reasons or [str(e)]) if isinstance(e, CannotMove) else [])

    def _who(self, pid: int) -> str:
        """The name under which a place for it is reserved."""
        if (keeper := self.guests.keeper(pid)) and keeper.state:
            home = keeper.state.home
            return reservation(next((n.id for n in self.targets.nodes() if n.name == home), 0), keeper.state.pid)
        return reservation(self.targets.me().id, pid)

    # -- for ``why`` ----------------------------------------------------------------------------------------------------------------

    def candidate(self, pid: int, comm: str) -> Candidate:
        """The figures of a process here."""
        return self.candidates.one(pid, comm)

    async def why_not(self, pid: int) -> list[str]:
        """Every rule that keeps the balancer from ``pid`` at present."""
        return await self.candidates.why_not(pid)
