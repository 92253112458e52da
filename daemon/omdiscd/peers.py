"""The TCP listener: other nodes ask how we are, reserve a place, bring a guest, or ask what became of one."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mig import wire
from mig.config import Config
from mig.migration import journal
from mig.migration.peer import SILENCE
from mig.model import NodeInfo, ProcessFacts
from mig.trust import links
from mig.trust.store import Peer
from mig.trust.strangers import Strangers
from omdiscd import pool_events
from omdiscd.admission import admit, refusals
from omdiscd.events import Events
from omdiscd.guests import Guests
from omdiscd.places import Places
from omdiscd.sampler import Sampler
from omdiscd.spawn import Spawner

log = logging.getLogger(__name__)

Order = Callable[[socket.socket, dict[str, Any]], Awaitable[None]]
Steer = Callable[[socket.socket, dict[str, Any], Peer], Awaitable[None]]

_IDLE = 30.0
"""Seconds between two requests on one connection."""
_BACKLOG = 64
_GREETERS = 64
"""Connections that may be about to prove who they are; more are dropped, so that strangers cannot use up our descriptors."""


class PeerServer:
    """Accepts connections of nodes of the pool; each carries any number of questions, or ends as a keeper's."""

    def __init__(
        self, config: Config, nodes: Callable[[], list[NodeInfo]], sampler: Sampler, guests: Guests, spawner: Spawner, events: Events
    ) -> None:
        self.config, self.sampler, self.guests, self.spawner, self.events = config, sampler, guests, spawner, events
        self.nodes, self.strangers = nodes, Strangers()
        self._greeting = 0
        self.places = Places(config.sample_s, config.transfers, config.starts)
        self.order: Order | None = None
        """Who serves the orders of nodes on which guests of ours run."""
        self.steer: Steer | None = None
        """Who serves what root of another node wants of this one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    def start(self, addr: str, port: int) -> None:
        """Listen; raises ``OSError`` when the port is taken."""
        s = socket.socket(
            socket.AF_INET6 if ":" in addr else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((addr, port))
        s.listen(_BACKLOG)
        self._listener = s

    async def run(self) -> None:
        """Accept until cancelled."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                conn, source = await loop.sock_accept(self._listener)
            except OSError as e:
                log.warning("accept: %s", e)  # out of descriptors, or the peer gave up in the queue
                await asyncio.sleep(0.1)
                continue
            if self._greeting >= _GREETERS:
                self.strangers.say(log, str(source[0]), f"a connection was dropped: {_GREETERS} others have not said who they are")
                conn.close()
            else:
                self._greeting += 1  # here: a burst is accepted before the first of its tasks runs
                task = asyncio.ensure_future(self._meet(conn, str(source[0])))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # while more are waiting, accepting gives nobody else a turn

    def close(self) -> None:
        """Stop listening; keepers keep their connections."""
        if self._listener is not None:
            self._listener.close()
        for t in self._tasks:
            t.cancel()

    def live(self, *, but: str = "") -> tuple[NodeInfo, float, int]:
        """Our entry as of now, and the threads and bytes that are on their way here, or promised to others than ``but``."""
        running = {x.state.helper: x.state.host_pid for x in self.guests.keepers() if x.state and x.state.host_pid}
        self.places.tidy(time.monotonic(), running, lambda keeper: keeper in self.spawner.pids)
        k, mem = self.places.hidden(self.sampler.table.runnable_of, but=but)
        return dataclasses.replace(self.sampler.live(), guests=self.guests.hosted()), k, mem

    def coming(self) -> bool:
        """Whether a guest is on its way here, or runs here and its keeper has not been heard yet."""
        self.live()
        return any(not p.pid for p in self.places.arriving.values()) or any(k.state is None for k in self.guests.keepers())

    async def _meet(self, conn: socket.socket, source: str) -> None:
        try:
            s, peer = await links.accept(conn, dead_after=SILENCE)
        except (OSError, TimeoutError) as e:
            self.strangers.say(log, source, f"its connections are turned away: {e or 'no greeting in time'}")
            return
        finally:
            self._greeting -= 1
        await self._serve(s, peer)

    async def _serve(self, conn: socket.socket, peer: Peer) -> None:
        source = peer.name
        try:
            while True:
                m = await asyncio.wait_for(wire.arecv(conn), _IDLE)
                if m.get("op") == "prepare":
                    await self._prepare(conn, m, source)
                    return
                if m.get("op") == "order" and self.order is not None:
                    await self.order(conn, m)
                    return
                if m.get("op") == "steer" and self.steer is not None:
                    await self.steer(conn, m, peer)
                    return
                await wire.asend(conn, **self._answer(m))
        except (EOFError, TimeoutError):
            pass  # the peer has asked all that it wanted
        except (OSError, ValueError, TypeError, KeyError) as e:
            self.strangers.say(log, source, f"its question makes no sense: {type(e).__name__}: {e}")
        finally:
            conn.close()

    def _answer(self, m: dict[str, Any]) -> dict[str, Any]:
        op = m.get("op")
        if op == "ask":
            return {"op": "answer", "mid": m["mid"], "state": journal.verdict(str(m["mid"]))}
        if op == "known":  # the source has our answer from an earlier question
            journal.Journal(str(m["mid"]), "destination").forget()
            return {"op": "forgotten", "mid": m["mid"]}
        if op == "info":
            info, k, mem = self.live(but=str(m.get("who", "")))
            return {"op": "info", "node": dataclasses.asdict(info), "reserved_k": k, "reserved_mem": mem}
        if op == "consider":
            _, _, _, reasons = self._consider(m)
            return {"op": "considered", "reasons": reasons}
        if op == "events":
            return pool_events.answer(self.events, m)
        if op == "reserve":
            return self._reserve(str(m["who"]), float(m["k"]), int(m["mem"]), start=m.get("start") is True)
        if op == "release":
            self.places.release(str(m["who"]))
            return {"op": "released"}
        return {"op": "unknown", "asked": str(op)[:40]}

    def _reserve(self, who: str, k: float, mem: int, *, start: bool) -> dict[str, Any]:
        _, _, held = self.live(but=who)
        reasons = refusals(self.sampler.info)
        wait = self.places.full(start=start, but=who) if not reasons else ""
        if wait:
            reasons.append(f"{self.sampler.info.name}: {wait}")
        if mem > self.sampler.info.mem_free - held - self.config.mem_reserve:
            reasons.append(f"{self.sampler.info.name} has no room for {mem >> 20} MiB")
        if not reasons:
            self.places.hold(time.monotonic(), who, k, mem, start=start)
        return {"op": "reserved", "ok": not reasons, "reasons": reasons, "wait": bool(wait) and len(reasons) == 1}

    def _home(self, m: dict[str, Any]) -> NodeInfo | None:
        """The home that a request names, as the pool knows that node: what a source says of another node's address counts for nothing."""
        said = NodeInfo.from_map(m["home"])
        home = next((n for n in self.nodes() if n.id == said.id), None)
        if home is not None:
            m["home"] = dataclasses.asdict(home)
        return home

    def _hosted_mem(self) -> int:
        home = self.sampler.info.name
        return sum(k.state.rss for k in self.guests.keepers() if k.state and k.state.home != home)

    def _consider(self, m: dict[str, Any]) -> tuple[ProcessFacts, NodeInfo | None, NodeInfo, list[str]]:
        """The process that a request is about, its home (None: not known here), our own entry, and everything that speaks against it."""
        facts, home = ProcessFacts.from_map(m["facts"]), self._home(m)
        info, _, reserved = self.live(but=reservation(home.id, facts.pid) if home else "")
        if home is None:
            return facts, None, info, [f"{info.name} does not know the home of the process yet, node {m['home'].get('id')}"]
        reasons = admit(facts, home, info, self.config, hosted=info.guests, reserved_mem=reserved, hosted_mem=self._hosted_mem())
        return facts, home, info, reasons

    async def _prepare(self, conn: socket.socket, m: dict[str, Any], source: str) -> None:
        facts, home, info, reasons = self._consider(m)
        if home is None:
            await wire.asend(conn, op="refused", reasons=reasons)
            return
        who = reservation(home.id, facts.pid)
        if int(m.get("v", wire.VERSION)) > wire.VERSION or int(m.get("v", wire.VERSION)) < wire.OLDEST:
            reasons.append(f"{info.name} speaks version {wire.VERSION}, the source {m.get('v')}")
        store = m["store"] = m.get("store") is True
        if store and home.id != info.id:
            reasons.append(f"{info.name} stores its own guests only")
        if reasons:
            self.places.release(who)
            log.info("process %d (%s) of %s refused: %s", facts.pid, facts.comm, home.name, "; ".join(reasons))
            self.events.add(
                "refuse", pid=facts.pid, comm=facts.comm, home=home.name, to=info.name, outcome="refused", reason="; ".join(reasons)
            )
            await wire.asend(conn, op="refused", reasons=reasons)
            return
        m["mode"] = "home" if home.id == info.id else "remote"  # only home shows its own file tree
        m["root_allowed"] = self.config.allow_root_guests  # whatever the source wrote there
        pid = self.spawner.keeper(conn, m)
        what = f"process {facts.pid} ({facts.comm}) of {home.name}"
        log.info("move %s: keeper %d prepares for %s, asked by %s", m.get("mid"), pid, what, source)
        if store:
            return  # it takes neither CPU nor memory
        # it counts before the samples see it, so that the next one who asks gets the truth
        self.places.come(time.monotonic(), pid, who, facts.rss)
        self.sampler.loads.arrived()
        self.sampler.publish()


def reservation(home: int, pid: int) -> str:
    """The name under which a place for this process is reserved."""
    return f"{home}-{pid}"
