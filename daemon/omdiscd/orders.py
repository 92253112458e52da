"""How an order for a guest reaches its home agent: over its socket at home, or through home's omdiscd from the host on which it runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from mig import wire
from mig.errors import BadInput, CannotMove, MigError
from mig.memory.ladder import LEAVING, MODES
from mig.model import NodeInfo
from mig.trust import links
from omdiscd.guests import Guests, Link

if TYPE_CHECKING:
    from omdiscd.jobs import Jobs
    from omdiscd.moves import Mover

log = logging.getLogger(__name__)

Answers = AsyncGenerator[dict[str, Any], None]


async def at_home(link: Link, order: dict[str, Any], deadline: float) -> Answers:
    """Give ``order`` to an agent here; yields its answers, ends when it is gone; raises ``TimeoutError`` at ``deadline`` (loop time)."""
    i, answers = await link.order(**order)
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                m = await answers.get()
            if m is None:
                return
            yield m
    finally:
        link.done(i)


async def from_host(home: NodeInfo, pid: int, where: str, order: dict[str, Any], deadline: float) -> Answers:
    """Give ``order`` for the guest ``pid`` of ``home``, which runs here (``where``), to home's omdiscd; otherwise as :func:`at_home`."""
    try:
        s = await links.connect(home.id, home.addr, home.port)
    except (OSError, TimeoutError) as e:
        raise CannotMove(f"{home.name}, the home of process {pid}, cannot be reached: {e or 'no answer'}") from e
    with s:
        with contextlib.suppress(EOFError, OSError):
            await wire.asend(s, op="order", pid=pid, where=where, order=order)
            while True:
                async with asyncio.timeout_at(deadline):
                    m = await wire.arecv(s)
                yield m


class HomeOrders:
    """Serves other nodes' orders for guests of ours that run there."""

    def __init__(self, mover: Mover, jobs: Jobs, guests: Guests) -> None:
        self.mover, self.jobs, self.guests = mover, jobs, guests

    async def serve(self, conn: socket.socket, m: dict[str, Any]) -> None:
        """Carry out ``{op: order, pid, where, order}`` and answer as the agent would."""
        order = dict(m["order"])
        try:
            if order.get("op") == "lock":
                link = self._guest(int(m["pid"]), str(m["where"]))
                await link.send(op="lock", on=bool(order.get("on")))
                result: dict[str, Any] = {}
            else:
                result = await self._move(conn, int(m["pid"]), str(m["where"]), order)
        except MigError as e:
            await wire.asend(conn, op="moved", ok=False, error=e.to_wire())
        else:
            await wire.asend(conn, op="moved", ok=True, result=result)

    def _guest(self, pid: int, where: str) -> Link:
        link = self.guests.agent(pid)
        if link is None or link.state is None or link.state.where != where:
            raise BadInput(f"process {pid} is no guest of ours on {where}")
        return link

    async def _move(self, conn: socket.socket, pid: int, where: str, order: dict[str, Any]) -> dict[str, Any]:
        link = self._guest(pid, where)
        to = self.mover.targets.find(str(NodeInfo.from_map(order["to"]).id))
        if order.get("auto"):
            self._allowed(link, to)

        async def progress(step: str, text: str) -> None:
            await wire.asend(conn, op="progress", step=step, text=text)

        timeout, reason = float(order["timeout"]), str(order.get("reason", ""))
        log.info("process %d goes from %s to %s, as %s asks: %s", pid, where, to.name, where, reason)
        leaving = order.get("memory") == LEAVING
        memory, limit_bps = memory_options({"mode": order.get("memory", "auto"), "limit_bps": order.get("limit_bps", 0)}, leaving=leaving)
        subject = self.mover.subject(pid)
        return await self.mover.move(
            subject, to, timeout=timeout, reason=reason, progress=progress, memory=memory, limit_bps=limit_bps,
            hold_s=float(order.get("hold_s") or 0), store=order.get("mode") == "store",
        )  # fmt: skip

    def _allowed(self, link: Link, to: NodeInfo) -> None:
        """What home's flags say to another node's balancer."""
        assert link.state is not None
        job, home = self.jobs.table.get(link.state.pid), self.mover.targets.me()
        if link.state.locked or (job and job.locked):
            raise CannotMove(f"process {link.state.pid} ({link.state.comm}) is locked")
        if job and to.id != home.id and (job.home or (job.nodes and to.name not in job.nodes)):
            raise CannotMove(f"process {link.state.pid} ({link.state.comm}) may not run on {to.name}")


def move_order(
    to: NodeInfo,
    mode: str,
    timeout: float,
    reason: str,
    frozen: str,
    auto: bool,
    *,
    memory: str = "auto",
    limit_bps: int = 0,
    hold_s: float = 0.0,
) -> dict[str, Any]:
    """The order to move (``mode``: remote, home, or ``store`` at home); ``frozen``: the cgroup in which it stands already, ``auto``:
    a balancer asks, not a person.

    ``memory``: how it travels (:data:`mig.memory.ladder.MODES`, or ``LEAVING``); ``limit_bps``: bits a second for what goes before the
    freeze, 0: no limit; ``hold_s``: seconds for which no balancer moves it on.
    """
    order: dict[str, Any] = {"op": "move", "to": dataclasses.asdict(to), "mode": mode, "timeout": timeout, "reason": reason, "auto": auto}
    order |= {"memory": memory, "limit_bps": limit_bps, "hold_s": hold_s}
    return order | ({"frozen": True, "cgroup": frozen} if frozen else {})


def memory_options(request: dict[str, Any], *, leaving: bool = False) -> tuple[str, int]:
    """``mode`` and ``limit_bps`` of a request to move, ``leaving``: from a node that may go down; raises :class:`BadInput`."""
    mode, limit = request.get("mode", "auto"), request.get("limit_bps", 0)
    if mode not in MODES and not (leaving and mode == LEAVING):
        raise BadInput(f"there is no mode {mode!r}; memory travels by one of {', '.join(MODES)}")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise BadInput(f"{limit!r} is not a number of bits a second")
    return mode, limit
