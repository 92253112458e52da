"""What the control socket can be asked to do: one method an operation, each of which judges its caller."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from mig.config import Config
from mig.economy.efficiency import efficiency
from mig.economy.price import NodeView
from mig.errors import BadInput, CannotMove, NotPermitted
from mig.inspect import own_sockets
from mig.kernel import procfs
from mig.model import NodeInfo
from omdiscd.balancer import Balancer
from omdiscd.checks import checks
from omdiscd.control import Call, Caller, Handler
from omdiscd.discovery import Discovery
from omdiscd.events import Events
from omdiscd.explain import explain
from omdiscd.guests import Guests
from omdiscd.jobs import Job, Jobs
from omdiscd.moves import Mover, Subject
from omdiscd.orders import memory_options
from omdiscd.pool_events import PoolEvents
from omdiscd.starts import Starts
from omdiscd.targets import Targets


class Operations:
    """The handlers; :meth:`table` maps them to their names on the wire."""

    def __init__(
        self, config: Config, targets: Targets, guests: Guests, mover: Mover, jobs: Jobs, balancer: Balancer, events: Events,
        discovery: Discovery, reload: Callable[[], list[str]],
    ) -> None:  # fmt: skip
        self.config, self.targets, self.guests, self.mover, self.jobs = config, targets, guests, mover, jobs
        self.balancer, self.events_, self.discovery, self._reload = balancer, events, discovery, reload
        self.starts = Starts(balancer)

    def table(self) -> dict[str, Handler]:
        """Handlers by op."""
        return {
            "status": self.status, "whois": self.whois, "guests": self.list_guests, "migrate": self.migrate, "job": self.job,
            "lock": self.lock, "unlock": self.unlock, "why": self.why, "events": self.events, "doctor": self.doctor,
            "reload": self.reload,
        }  # fmt: skip

    # -- looking ------------------------------------------------------------------------------------------------------------------

    async def status(self, call: Call) -> dict[str, Any]:
        """``{node?}`` -> ``{nodes, self, auto, policy, efficiency, switches}``; efficiency of the pool: 0 to 1."""
        node = call.request.get("node")
        nodes = [self.targets.find(str(node))] if node not in (None, "") else self.targets.nodes()
        up = [NodeView.of(n) for n in self.targets.nodes() if n.state == "alive"]
        return {
            "nodes": [dataclasses.asdict(n) for n in nodes], "self": self.targets.me().name, "auto": self.config.auto,
            "policy": self.balancer.policy.name, "efficiency": round(efficiency(up), 3), "switches": self.balancer.switches.on(),
        }  # fmt: skip

    async def whois(self, call: Call) -> dict[str, Any]:
        """``{node}`` -> ``{node: NodeInfo}``."""
        return {"node": dataclasses.asdict(self.targets.find(str(call.request.get("node", ""))))}

    async def list_guests(self, call: Call) -> dict[str, Any]:
        """``{all}`` -> ``{guests}``: guests of ours, guests that run here, jobs; without ``all`` only the caller's (root: all)."""
        rows = self.guests.rows()
        rows += self.jobs.rows({r.pid for r in rows if r.role == "agent"})
        uid = call.caller.uid
        if not call.request.get("all") and uid != 0:
            rows = [r for r in rows if r.uid == uid]
        out = []
        for r in sorted(rows, key=lambda r: (r.home, r.pid)):
            why_not = r.cantmove or self.balancer.reasons.get(r.host_pid or r.pid, [])
            out.append(dataclasses.asdict(r) | {"cantmove": why_not, "locked": r.locked or self._locked(r.pid, r.role)})
        return {"guests": out}

    def _locked(self, pid: int, role: str) -> bool:
        j = self.jobs.table.get(pid)
        return role != "keeper" and j is not None and j.locked

    async def doctor(self, call: Call) -> dict[str, Any]:
        """``{}`` -> ``{checks: [{name, ok, text, remedy}]}``: what the daemon knows of itself; the tool adds the machine."""
        return {"checks": [dataclasses.asdict(c) for c in checks(self.config, self.targets, self.discovery)]}

    async def events(self, call: Call) -> dict[str, Any]:
        """``{follow, since?, pool?}``: the events after ``since`` (wall time), as ``{events}`` or, followed, as a stream of ``{event}``.

        ``pool``: those of all nodes, each with the name of its ``node``, and ``silent``: the nodes that did not answer.
        """
        since = float(call.request.get("since") or 0)
        if call.request.get("pool"):
            return await PoolEvents(self.targets, self.events_, since).serve(call, follow=bool(call.request.get("follow")))
        if not call.request.get("follow"):
            return {"events": self.events_.since(since)}
        queue = self.events_.follow()
        try:
            for e in self.events_.since(since):
                await call.item(event=e)
            while (event := await queue.get()) is not None:
                await call.item(event=event)
        finally:
            self.events_.unfollow(queue)
        return {"events": []}

    async def why(self, call: Call) -> dict[str, Any]:
        """``{pid}`` -> see :func:`omdiscd.explain.explain`."""
        return await explain(self._subject(call), self.balancer)

    # -- changing -----------------------------------------------------------------------------------------------------------------

    async def migrate(self, call: Call) -> dict[str, Any]:
        """``{pid, to, dry_run, timeout, mode, limit_bps, free, own_sockets}`` -> progress ``{step, text}``, then ``{result}``.

        A dry run's result is ``{plan, reasons, price}``.
        """
        r = call.request
        if not isinstance(r.get("to"), str) or not r["to"]:
            raise BadInput("a move needs a destination: a node, 'home' or 'balance'")
        timeout = _seconds(r.get("timeout"), self.config.move_timeout_s)
        memory, limit_bps = memory_options(r)
        s = self._subject(call)
        to = await self.mover.destination(s, r["to"])
        if r.get("own_sockets") and s.link is None:
            own_sockets.declare(s.pid)
        if r.get("dry_run"):
            return {"result": await self.mover.plan(s, to, call.caller.pid)}

        async def progress(step: str, text: str) -> None:
            await call.item(step=step, text=text)

        reason = f"user {call.caller.uid} asked"
        hold_s = 0.0 if r.get("free") or r["to"] == "balance" else self.config.hand_hold_s
        result = await self.mover.move(
            s, to, timeout=timeout, reason=reason, progress=progress, memory=memory, limit_bps=limit_bps, asker=call.caller.pid,
            hold_s=hold_s,
        )  # fmt: skip
        return {"result": result}

    async def job(self, call: Call) -> dict[str, Any]:
        """``{pid, flags}``: a process becomes a managed job -> ``{hold: False}`` or, to start elsewhere, ``{hold: True, to}``.

        One that was ordered away before it asked starts where that order takes it, unless it must start on certain nodes.
        """
        s = self._subject(call)
        if s.keeper is not None:
            raise BadInput(f"process {s.pid} ({s.comm}) is a guest of {s.home}: it is a job there or nowhere")
        flags = call.request.get("flags") or {}
        if not isinstance(flags, dict):
            raise BadInput("flags must be a map")
        names = [self.targets.find(str(n)).name for n in flags.get("nodes") or ()]
        home = bool(flags.get("home"))
        job = Job(
            s.pid, procfs.stat(s.pid).start, s.uids[0], s.comm, home=home, locked=bool(flags.get("locked")), quiet=bool(flags.get("quiet")),
            nodes=names, placed=not home and bool(flags.get("node") or flags.get("best") or names),
        )  # fmt: skip
        if flags.get("own_sockets"):
            own_sockets.declare(s.pid)
        to = None
        if s.agent is None:
            to = None if home else await self._start_node(s, flags, names)
        elif names or flags.get("node"):
            raise BadInput(
                f"process {s.pid} ({s.comm}) was moved by another order before it had asked for its nodes; its program was not started",
                hint="start it again",
            )
        elif job.locked:
            await s.agent.send(op="lock", on=True)
        if to is not None:
            await self.jobs.hold(job, to)
        self.jobs.register(job)
        return {"hold": to is not None, "to": to.name if to else self.targets.me().name}

    async def _start_node(self, s: Subject, flags: dict[str, Any], names: list[str]) -> NodeInfo | None:
        """Where a new job starts; None: here."""
        me = self.targets.me()
        if flags.get("node"):
            n = self.targets.find(str(flags["node"]))
            if reasons := self.targets.against(n):
                raise CannotMove(f"the job cannot start on {n.name}", reasons=reasons)
            return None if n.id == me.id else n
        if not (flags.get("best") or names):
            return None
        return await self.starts.choose(s.pid, names)

    async def reload(self, call: Call) -> dict[str, Any]:
        """``{}`` -> ``{said}``: configuration and keys are read again; what changed, and what waits for a restart."""
        _only_root(call.caller, "have omdiscd read its configuration again")
        return {"said": self._reload()}

    async def lock(self, call: Call) -> dict[str, Any]:
        """``{pid}``: the balancer leaves it alone."""
        return await self._lock(call, True)

    async def unlock(self, call: Call) -> dict[str, Any]:
        """``{pid}``: the balancer may move it again."""
        return await self._lock(call, False)

    async def _lock(self, call: Call, on: bool) -> dict[str, Any]:
        s = self._subject(call)
        if s.agent is not None:
            await s.agent.send(op="lock", on=on)
        if s.keeper is not None:
            await self.mover.lock_at_home(s, on)
        else:
            # the flag of the job stays when its agent ends with it at home
            st = procfs.stat(s.home_pid)
            job = self.jobs.table.get(s.home_pid) or Job(s.home_pid, st.start, s.uids[0], s.comm)
            job.locked = on
            self.jobs.register(job)
        return {"pid": s.pid, "locked": on}

    def _subject(self, call: Call) -> Subject:
        s = self.mover.subject(call.request.get("pid"))
        if self.mover.is_ours(s.pid):
            raise BadInput(f"process {s.pid} ({s.comm}) is part of omdiscd itself")
        self.mover.permit(s, call.caller.uid)
        return s


def _only_root(caller: Caller, what: str) -> None:
    if caller.uid != 0:
        raise NotPermitted(f"only root may {what}")


def _seconds(value: Any, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise BadInput(f"timeout {value!r} is not a number of seconds")
    return float(value)
