"""One move from an order to its result: which process is meant, may the caller, can it go there, and who does it.

Users' orders and the balancer's go the same way.  The moving itself is the business of the home agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mig import paths
from mig.economy import words
from mig.economy.policy import Candidate, judge, order_for_start, prices
from mig.economy.price import NodeView
from mig.errors import BadInput, CannotMove, MigError, MoveFailed, NotPermitted, OutcomeUnknown
from mig.inspect.facts import gather
from mig.kernel import procfs
from mig.migration import journal
from mig.model import NodeInfo, ProcessFacts
from omdiscd.guests import Guests, Link
from omdiscd.orders import Answers, at_home, from_host, move_order
from omdiscd.peers import reservation
from omdiscd.sampler import Sampler
from omdiscd.spawn import Spawner
from omdiscd.targets import Targets

log = logging.getLogger(__name__)

Progress = Callable[[str, str], Awaitable[None]]

GRACE = 30.0
"""Seconds beyond the timeout in which the agent must have answered: it rolls back, or says that it does not know."""
_DIED = 15.0
"""Seconds given to the recovery after an agent died in the middle of a move, before the caller is told that nobody knows yet."""


@dataclass(frozen=True)
class Subject:
    """What a pid means here.  A plain process at home, a guest of ours (``agent``), or another node's that runs here (``keeper``)."""

    pid: int
    uids: tuple[int, ...]
    comm: str
    where: str  # name of the node on which it runs
    home: str
    agent: Link | None = None
    keeper: Link | None = None
    body: int = 0  # pid here of the process that does the work; 0 where it runs elsewhere, or is stored

    @property
    def link(self) -> Link | None:
        """Whom to order."""
        return self.agent or self.keeper

    @property
    def stored(self) -> bool:
        """Whether its images lie on this node's disk, and it runs nowhere."""
        return self.agent is not None and self.agent.state is not None and self.agent.state.state == "stored"

    @property
    def home_pid(self) -> int:
        """Its pid at home."""
        return self.link.state.pid if self.link and self.link.state else self.pid


async def silent(step: str, text: str) -> None:
    """A progress listener that is not interested."""


class Mover:
    """Finds subjects and moves them."""

    def __init__(self, sampler: Sampler, guests: Guests, spawner: Spawner, targets: Targets) -> None:
        self.sampler, self.guests, self.spawner, self.targets = sampler, guests, spawner, targets
        self.active: dict[int, tuple[str, Candidate]] = {}
        """Moves that this daemon waits for: by pid here the name of the target, and what leaves."""

    # -- which process ------------------------------------------------------------------------------------------------------------

    def subject(self, pid: Any) -> Subject:
        """What ``pid`` means; raises :class:`BadInput` when nothing that could ever move."""
        if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
            raise BadInput(f"{pid!r} is not a process id")
        me = self.targets.me().name
        try:
            status, st = procfs.status(pid), procfs.stat(pid)
        except ProcessLookupError:
            raise BadInput(f"there is no process {pid}") from None
        if found := self._guest(pid, (status.uids[0], status.uids[2])):
            return found
        if pid == 1:
            raise BadInput("process 1 is init: it belongs to its machine")
        if status.tgid != pid:
            raise BadInput(
                f"{pid} is a thread of process {status.tgid}", hint=f"a process moves with all its threads: migrate {status.tgid}"
            )
        if st.is_kernel_thread:
            raise BadInput(f"process {pid} ({st.comm}) is a kernel thread")
        if st.state in "ZX":
            raise BadInput(f"process {pid} ({st.comm}) has ended; its parent {st.ppid} has not yet asked for its exit status")
        return Subject(pid, (status.uids[0], status.uids[2]), st.comm, me, me, body=pid)

    def _guest(self, pid: int, uids: tuple[int, int]) -> Subject | None:
        """``pid`` as a guest: the deputy of one of ours, or the process itself where it runs here."""
        me = self.targets.me().name
        agent, keeper = self.guests.agent(pid), self.guests.keeper(pid)
        if keeper and keeper.state and keeper.state.home == me:
            agent, keeper = self.guests.agent(keeper.state.pid), keeper  # one of ours that came home: its agent is here too
        if agent and agent.state:
            a = agent.state
            cell = keeper or next((k for k in self.guests.keepers() if k.state and (k.state.home, k.state.pid) == (me, a.pid)), None)
            body = cell.state.host_pid if cell and cell.state and a.where == me else 0
            return Subject(pid, (*uids, a.uid), a.comm, a.where, me, agent, body=body)
        if keeper and keeper.state:
            k = keeper.state
            return Subject(pid, (*uids, k.uid), k.comm, me, k.home, keeper=keeper, body=pid)
        return None

    @staticmethod
    def permit(s: Subject, uid: int) -> None:
        """Raises :class:`NotPermitted` unless a caller with this user id could kill the process, by the rule of kill(2)."""
        if uid != 0 and uid not in s.uids[:2]:
            raise NotPermitted(f"process {s.pid} ({s.comm}) belongs to user {s.uids[0]}, you are user {uid}")

    # -- where to -----------------------------------------------------------------------------------------------------------------

    async def destination(self, s: Subject, to: str) -> NodeInfo:
        """The node that ``to`` (a node, ``home`` or ``balance``) means for ``s``; raises :class:`BadInput` when it runs there already."""
        if to == "balance":
            return await self._best_for(s)
        n = self.targets.find(s.home if to == "home" else to)
        if n.name == s.where and not s.stored:
            place = "at home" if s.where == s.home else f"on {n.name}"
            raise BadInput(f"process {s.pid} ({s.comm}) is {place} already; nothing was done")
        return n

    async def _best_for(self, s: Subject) -> NodeInfo:
        if s.stored:
            raise BadInput(
                f"process {s.pid} ({s.comm}) is stored; it is brought back as soon as a node has room for it", hint="name a node, or 'home'"
            )
        if not s.body:
            raise BadInput(
                f"process {s.pid} ({s.comm}) runs on {s.where}, whose own balancer looks after it", hint="name a node, or 'home'"
            )
        c = self.candidate(s.body, s.comm)
        me = self.sampler.mine()
        nodes = self.targets.open()
        reasons = []
        order = order_for_start([NodeView.of(n) for n in nodes], c.k, c.rss)
        for v in order[:3]:
            n = next(n for n in nodes if n.id == v.id)
            live = await self.targets.ask(n, reservation(self.targets.me().id, s.home_pid))
            if live is None:
                reasons.append(f"{n.name} does not answer")
                continue
            verdict = judge(me, live, c, self.targets.knobs, len(nodes) + 1, active=len(self.active))
            if verdict.pays:
                return n
            reasons.append(words.reason(c, live, verdict))
        raise CannotMove(
            f"process {s.pid} ({s.comm}) is best where it is, on {me.name}", reasons=reasons or ["no other node accepts guests"]
        )

    def candidate(self, pid: int, comm: str, *, placed: bool = False, only: frozenset[str] = frozenset()) -> Candidate:
        """The figures of process ``pid`` and all below it, from the process table."""
        table = self.sampler.table
        tree = [table.processes[p] for p in (pid, *table.below(pid)) if p in table.processes]
        return Candidate(
            pid, comm, sum(p.cpu_s for p in tree), sum(p.rss for p in tree), sum(p.runnable for p in tree), placed=placed, only=only,
            busy=sum(p.busy for p in tree),
        )  # fmt: skip

    async def obstacles(self, s: Subject, to: NodeInfo, asker: int = 0) -> tuple[list[str], ProcessFacts | None]:
        """Everything that speaks against the move as far as this node can see, and the facts of a plain process; ``asker``: who asks."""
        reasons = self.targets.against(to) if to.name != s.home else [r for r in self.targets.against(to) if "accept" not in r]
        if s.link is not None:
            return reasons, None
        try:
            facts = await asyncio.to_thread(gather, s.pid, asker=asker)  # it reads hundreds of files of /proc: not in the loop
        except ProcessLookupError:
            raise BadInput(f"there is no process {s.pid}") from None
        return [*facts.reasons, *reasons], facts

    async def plan(self, s: Subject, to: NodeInfo, asker: int = 0) -> dict[str, Any]:
        """What a move would do, without doing it: ``plan`` (steps in words), ``reasons`` against it, ``price`` per node."""
        reasons, facts = await self.obstacles(s, to, asker)
        if facts is not None and not self.targets.against(to):
            reasons += await self.targets.consider(to, facts)
        c = self.candidate(s.body, s.comm)
        steps = [f"process {s.home_pid} ({s.comm}) goes from {s.where} to {to.name} ({to.addr})"]
        if facts:
            steps.append(f"{len(facts.tree)} process(es) with {len(facts.tids)} thread(s) move as one, {facts.rss / 1e6:.1f} MB of memory")
            steps += [f"{'the terminal' if e.kind == 'tty' else e.key} stays at home and is passed through" for e in facts.externals]
        steps.append(
            f"{s.home} keeps its pid {s.home_pid}, its files and its terminal"
            if to.name != s.home
            else "it uses its own files directly again"
        )
        return {"plan": steps, "reasons": reasons, "price": self.price_rows(c)}

    def price_rows(self, c: Candidate) -> list[dict[str, Any]]:
        """The price of every open node, and of this one, for ``c``."""
        me = self.sampler.mine()
        return [dict(r) for r in prices([me, *self.targets.views()], c.k, c.rss, me.id)]

    # -- doing it -----------------------------------------------------------------------------------------------------------------

    async def move(
        self,
        s: Subject,
        to: NodeInfo,
        *,
        timeout: float,
        reason: str,
        progress: Progress = silent,
        frozen: str = "",
        auto: bool = False,
        memory: str = "auto",
        limit_bps: int = 0,
        hold_s: float = 0.0,
        asker: int = 0,
        store: bool = False,
    ) -> dict[str, Any]:
        """Move ``s`` to ``to``; ``frozen`` is the cgroup in which it already stands frozen, ``auto`` tells a balancer's order.

        ``store``: ``to`` is its home, which is to put it on its disk.

        ``memory``, ``limit_bps``, ``hold_s``: see :func:`omdiscd.orders.move_order`.

        Returns the agent's result.

        Raises :class:`CannotMove` with every reason, :class:`MoveFailed` when it was rolled back, :class:`OutcomeUnknown` when nobody
        knows yet.
        """
        if s.pid in self.active:
            raise CannotMove(
                f"process {s.pid} ({s.comm}) is moving to {self.active[s.pid][0]} already", hint="wait for the move under way to end"
            )
        self.active[s.pid] = to.name, self.candidate(s.body, s.comm)
        try:
            reasons, _ = await self.obstacles(s, to, asker)
            if reasons:
                raise CannotMove(f"process {s.pid} ({s.comm}) cannot move to {to.name}; nothing was touched", reasons=reasons)
            mode = "store" if store else "home" if to.name == s.home else "remote"
            order = move_order(
                to, mode, timeout, reason, frozen, auto, memory=memory, limit_bps=limit_bps,
                hold_s=hold_s,
            )  # fmt: skip
            async with contextlib.aclosing(await self._answers(s, order, timeout + GRACE)) as answers:
                result = await self._carried_out(s, to, answers, progress)
            c = self.active[s.pid][1]
            if s.body:
                self.sampler.loads.left(c.k)
                self.sampler.publish()
            if s.link is None and not frozen:  # a keeper tells of its moves itself, whoever ordered them
                self.learn(result | {"rss": c.rss})
            return result
        finally:
            del self.active[s.pid]

    def learn(self, result: dict[str, Any]) -> None:
        """Something has moved away from here: what that cost enters what the next move is expected to cost."""
        with contextlib.suppress(TypeError, ValueError):  # an agent of another version may tell less
            self.targets.measured.learn(
                pause_s=float(result.get("pause_ms") or 0) / 1000, total_s=float(result.get("total_ms") or 0) / 1000,
                sent=int(result.get("bytes") or 0), rss=int(result.get("rss") or 0), cpu_s=float(result.get("cpu_ms") or 0) / 1000,
            )  # fmt: skip

    async def _answers(self, s: Subject, order: dict[str, Any], patience: float) -> Answers:
        """Give the order to the agent, wherever it is."""
        deadline = asyncio.get_running_loop().time() + patience
        if s.keeper is not None:
            home = self.targets.find(s.home)
            return from_host(home, s.home_pid, s.where, order, deadline)
        return at_home(s.agent or await self.spawner.agent(s.pid), order, deadline)

    async def lock_at_home(self, s: Subject, on: bool) -> None:
        """Lock or unlock a guest that runs here and belongs to another node."""
        async with contextlib.aclosing(await self._answers(s, {"op": "lock", "on": on}, 5.0)) as answers:
            async for m in answers:
                if not m.get("ok"):
                    raise MigError.from_wire(m.get("error") or {})
                return
        raise MigError(f"{s.home} did not answer")

    async def _carried_out(self, s: Subject, to: NodeInfo, answers: Answers, progress: Progress) -> dict[str, Any]:
        try:
            async for m in answers:
                if m.get("op") == "progress":
                    await progress(str(m.get("step", "")), str(m.get("text", "")))
                elif m.get("op") == "moved" and m.get("ok"):
                    return dict(m["result"])
                elif m.get("op") in ("moved", "failed"):
                    raise MigError.from_wire(m.get("error") or {"message": f"the helper of process {s.pid} failed; see {self._log_of(s)}"})
        except TimeoutError:
            raise OutcomeUnknown(
                f"the move of process {s.pid} ({s.comm}) to {to.name} has no result yet", hint="it goes on; mosps shows its state"
            ) from None
        raise await self._abandoned(s, to)

    async def _abandoned(self, s: Subject, to: NodeInfo) -> MigError:
        """The agent died while it moved the process: wait until that has been resolved, and say what is left."""
        deadline = asyncio.get_running_loop().time() + _DIED
        while (unresolved := self._unresolved(s)) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        where = f"process {s.pid} ({s.comm})"
        log_hint = f"the helper's log: {self._log_of(s)}"
        if procfs.state(s.pid) in (None, "Z"):
            return MigError(f"{where} has ended while it was moved to {to.name}: it was lost with its helper", hint=log_hint)
        if not unresolved and s.link is None:
            return MoveFailed(f"the home agent died while it moved {where}; still running on {self.targets.me().name}", hint=log_hint)
        return OutcomeUnknown(f"the helper that moved {where} to {to.name} died; mosps shows where it is", hint=log_hint)

    @staticmethod
    def _unresolved(s: Subject) -> bool:
        """Whether what the dead agent left is still being resolved: a journal without an end, or a guest not yet ended with its agent."""
        if procfs.state(s.pid) in (None, "Z"):
            return False
        return s.link is not None or any(mid.split("-")[1] == str(s.home_pid) for mid in journal.unfinished())

    @staticmethod
    def _log_of(s: Subject) -> str:
        return str(paths.LOGS / (f"agent-{s.home_pid}.log" if s.keeper is None else f"keeper-*-{s.home_pid}.log"))

    def leaving(self) -> tuple[float, int]:
        """Threads and bytes that are on their way from here to elsewhere."""
        out = [c for _, c in self.active.values()]
        return sum(c.k for c in out), sum(c.rss for c in out)

    def is_ours(self, pid: int) -> bool:
        """Whether this is omdiscd or one of its helpers."""
        return pid == os.getpid() or pid in self.spawner.pids or pid in self.guests.helpers()
