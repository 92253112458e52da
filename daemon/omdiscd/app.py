"""All parts of one node put together, and run until SIGTERM or SIGINT; :mod:`omdiscd.command` is what is typed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import random
import signal
import socket
import time
from pathlib import Path

import mig
from mig import paths
from mig.config import Config, split_address
from mig.deputy import orphan
from mig.errors import MigError
from mig.kernel import pidfd, priority
from mig.kernel.cgroup import leave_unit
from mig.migration.sweep import litter, sweep
from mig.model import GuestState, NodeInfo
from mig.pool.pool import Changed, Pool
from mig.pool.timing import Timing
from mig.tasks import beat
from mig.trust import keys, links, store
from omdiscd import addresses, by_hand, node_id, ops, resources
from omdiscd.balancer import Balancer
from omdiscd.by_hand import ByHand
from omdiscd.control import Control
from omdiscd.discovery import Discovery, clock
from omdiscd.doors import Doors
from omdiscd.events import Events
from omdiscd.evict import ADMINISTRATOR, Evictor
from omdiscd.guests import Guests
from omdiscd.jobs import Jobs
from omdiscd.moves import Mover
from omdiscd.netwatch import NetWatch
from omdiscd.node_facts import Facts
from omdiscd.orders import HomeOrders
from omdiscd.owner import Owner
from omdiscd.owner_ops import OwnerOperations
from omdiscd.peers import PeerServer
from omdiscd.recovery import Recovery
from omdiscd.reload import Reloader
from omdiscd.sampler import Sampler
from omdiscd.seal import Seal
from omdiscd.service import notify, reloading, watchdog
from omdiscd.shelf import Shelf
from omdiscd.spawn import Spawner
from omdiscd.steered import Steered
from omdiscd.steering import Steering
from omdiscd.switches import Switches
from omdiscd.targets import Targets

log = logging.getLogger("omdiscd")

_NURSERY_S = 2.0
"""Seconds after which the nursery is started: its 0.3 s of CPU are not in the way of the start, and it is there before the first move."""
_RECOVERY_S = 0.5
"""Seconds between two looks for what dead agents left: a process of theirs may stand frozen."""


class Daemon:
    """All parts of one node."""

    def __init__(self, config: Config, interfaces: list[str], file: Path | None = None) -> None:
        self.config = config
        paths.make_run_dirs()
        cluster = keys.load()
        if not cluster:
            log.warning("no cluster key in %s: this node speaks on loopback only, with nobody", paths.KEY)
        info, self.interfaces = _identity(config, interfaces, bool(cluster))
        self.known = links.known()
        self.events = Events()
        self.sampler = Sampler(config, info)
        self.facts = Facts(info)
        self.guests = Guests(self.me, self.events.relay, self._guests_changed)
        self.guests.on_agent_gone = self._agent_gone
        self.spawner = Spawner(self.me, self.guests, faults=config.faults)
        self.sampler.helpers = lambda: self.spawner.pids | self.guests.helpers() | {links.pid(), self.spawner.nursery.pid}
        self.sampler.guests = self.guests.hosts
        # without a key: one that nobody else has, so that local users can neither join nor order
        seal = Seal(cluster or [os.urandom(keys.SIZE)], info.id, info.incarnation)
        timing = Timing.of(config)
        seeds = [split_address(s, config.port) for s in config.seeds] if cluster else []
        self.members = Pool(info, seeds, timing, random.Random(), clock())
        self.discovery = Discovery(
            self.members, seal, group=_group(config, info.addr) if cluster else "",
            interfaces=self.interfaces, me=self.me, changed=self._node_changed,
        )  # fmt: skip
        self.netwatch = NetWatch(config, self.discovery, interfaces or list(config.interfaces), self._start_anew)
        self.anew = False
        """Whether omdiscd ends in order to start again."""
        self._stop = asyncio.Event()
        self.peers = PeerServer(config, self.discovery.nodes, self.sampler, self.guests, self.spawner, self.events)
        self.targets = Targets(config, self.discovery.nodes, self.me)
        self.mover = Mover(self.sampler, self.guests, self.spawner, self.targets)
        self.guests.on_costs = self.mover.learn
        self.jobs = Jobs(self.mover, self.spawner, self.events, self.me)
        self.peers.order = HomeOrders(self.mover, self.jobs, self.guests).serve
        self.switches = Switches.load()
        self.balancer = Balancer(config, self.sampler, self.guests, self.jobs, self.mover, self.targets, self.events, self.switches)
        self.steering = Steering(config, self.sampler, self.switches, self.jobs, self.mover, self.events)
        self.recovery = Recovery(info.id, self.guests, self.spawner)
        self.reloader = Reloader(file, config, seal, bool(cluster))
        operations = ops.Operations(
            config,
            self.targets,
            self.guests,
            self.mover,
            self.jobs,
            self.balancer,
            self.events,
            self.discovery,
            self.reloader.reload,
        )
        self.doors = Doors(self._doors_changed)
        self.evictor = Evictor(self.mover, self.guests, self.targets, self.events)
        self.shelf = Shelf(self.guests, self.mover, self.jobs)
        self.owner = Owner(config, self.sampler, self.guests, self.jobs, self.doors, self.evictor, self.events)
        self.balancer.shares.guest_weight = self.owner.share.unit
        self.by_hand = ByHand(config, self.doors, self.evictor, self.events, self.me, self.peers.coming)
        self.peers.steer = Steered(self.by_hand, self.discovery.nodes).serve
        of_owner = OwnerOperations(self.owner, self.evictor, self.by_hand, self._keep_home)
        self.control = Control(paths.CONTROL, operations.table() | of_owner.table() | self.steering.table())
        self._tasks: set[asyncio.Task[None]] = set()

    def me(self) -> NodeInfo:
        """Our own entry; the one object that all parts read."""
        return self.sampler.info

    async def run(self) -> None:
        """Serve until a signal; raises :class:`MigError` when it cannot start."""
        me = self.me()
        stop = self._stop
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        await _only_one()
        priority.high()  # it uses 1 % of a CPU
        try:
            await self.discovery.start()
            self.peers.start(me.addr, me.port)
        except OSError as e:
            raise MigError(f"cannot listen on {me.addr} port {me.port}: {e.strerror}", hint="is another omdiscd running here?") from e
        links.start()
        leave_unit(links.pid())
        self._learn()
        self.jobs.load()
        self.guests.look()
        self.doors.set(ADMINISTRATOR, self.me().why_not)  # blocked before, or by the configuration
        try:
            self.owner.start()
        except OSError as e:
            raise MigError(f"cannot listen on {paths.BELL}: {e.strerror}") from e
        self.control.start()
        where = ", ".join(self.discovery.interfaces) or "no interface"
        log.info(
            "node %s, id %d, %s port %d, hellos on %s, speed %.2f, %.2f CPUs", me.name, me.id, me.addr, me.port, where, me.speed, me.cpus
        )
        parts = (
            self.control.run, self.peers.run, self.discovery.run, self.sampler.run, self.guests.run, self.balancer.run, self._recover,
            self._keep_learning, self.owner.run, self.evictor.run, self.shelf.run, self.netwatch.run, self.facts.run, watchdog,
        )  # fmt: skip
        tasks = [asyncio.ensure_future(p()) for p in parts]
        waiting = asyncio.ensure_future(stop.wait())
        notify("READY=1")
        loop.call_later(_NURSERY_S, self.spawner.nursery.begin)
        try:
            done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
            for t in done - {waiting}:
                t.result()  # a part never ends by itself: this raises what ended it
        finally:
            if self.anew:
                reloading()  # after STOPPING=1 systemd would wait for our end, and kill who started anew after 90 s
            else:
                notify("STOPPING=1")
                me.state = "left"
                self.discovery.urgent()
            for t in (*tasks, *self._tasks, waiting):
                t.cancel()
            await asyncio.gather(*tasks, waiting, return_exceptions=True)
            self.owner.close()
            self.discovery.close()
            self.peers.close()
            self.control.close()
            self.spawner.nursery.close()

    def _hangup(self) -> None:
        reloading()
        self.reloader.at_signal()
        notify("READY=1")

    async def _recover(self) -> None:
        while True:
            await beat(_RECOVERY_S)
            self.recovery.look()
            if litter():
                await asyncio.to_thread(sweep)

    async def _keep_learning(self) -> None:
        while True:
            self._learn()
            await beat(1)

    def _learn(self) -> None:
        """Whose certificate is whose, and where everybody is, from gossip, for all processes of this node."""
        nodes = [*self.discovery.records(), self.me()]
        self.known.write((n.id, n.name, n.fingerprint) for n in nodes)
        links.addresses().write((n.id, n.addr) for n in nodes)

    # -- what parts tell each other -----------------------------------------------------------------------------------------------

    def _keep_home(self) -> None:
        self.switches.lstay = True
        self.switches.save()

    def _doors_changed(self, accepting: bool, why_not: str) -> None:
        """Tell everybody at once."""
        me = self.me()
        me.accepting, me.why_not = accepting, why_not
        self.discovery.urgent()

    def _start_anew(self, why: str) -> None:
        log.warning("this node starts anew: %s", why)
        self.anew = True
        self._stop.set()

    def _guests_changed(self) -> None:
        self.me().guests = self.guests.hosted()
        self.evictor.look_soon()
        self.owner.share.apply()

    def _agent_gone(self, pid: int, state: GuestState | None) -> None:
        """An agent that ended by itself has ended its deputy before; one that was killed leaves it, and its guest ends on its host."""
        try:
            start = state.start if state is not None else pidfd.identity(pid).start
        except ProcessLookupError:
            return
        if orphan.end(pid, start):
            comm, where = (state.comm, state.where) if state is not None else ("", "")
            why = "its home agent was killed, and the guest ends with it"
            log.error("guest %d (%s) is lost: %s", pid, comm, why)
            self.events.add("lost", pid=pid, comm=comm, home=self.me().name, outcome="lost", reason=why, **{"from": where})

    def _node_changed(self, c: Changed) -> None:
        n = c.node
        outcome = "rebooted" if c.rebooted else c.state
        self._learn()
        self.events.add("node", to=n.name, addr=n.addr, outcome=outcome, reason=f"was {c.before}" if c.before else "new")
        if c.rebooted or c.state in ("alive", "dead", "left"):
            task = asyncio.ensure_future(self.guests.tell_agents(n, c.state))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _identity(config: Config, interfaces: list[str], key: bool) -> tuple[NodeInfo, list[str]]:
    """Our entry, and the interfaces to say hello on; raises :class:`MigError` for an interface that does not exist."""
    chosen = interfaces or list(config.interfaces)
    try:
        if not key:
            addr, chosen = "127.0.0.1", []
        else:
            addr = config.addr or (addresses.first_address(chosen[0]) if chosen else addresses.default_address())
            for name in chosen:
                socket.if_nametoindex(name)
    except (LookupError, OSError) as e:
        raise MigError(f"cannot use interface {', '.join(chosen)}: {e}", hint="see: ip address") from e
    if key and not chosen and (name := addresses.interface_of(addr)):
        chosen = [name]
    blocked = by_hand.remembered(config)
    info = NodeInfo(
        id=config.id or node_id.stable(addr), name=config.name or platform.node() or addr, addr=addr, port=config.port,
        incarnation=time.time_ns() // 1_000_000, boot=node_id.boot(),
        speed=config.speed or resources.speed(), cpus=config.cpus or resources.cpus(),
        accepting=blocked is None, why_not=blocked.why if blocked else "", version=mig.__version__,
        fingerprint=store.make_identity(),
    )  # fmt: skip
    return info, chosen


def _group(config: Config, addr: str) -> str:
    """The multicast group of our address's kind."""
    return config.multicast6 if ":" in addr else config.multicast


async def _only_one() -> None:
    """Raises :class:`MigError` when an omdiscd answers on our control socket."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with s, contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_connect(s, str(paths.CONTROL))
        raise MigError(f"an omdiscd is running here already: it listens on {paths.CONTROL}")
