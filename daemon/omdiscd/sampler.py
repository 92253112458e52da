"""Keeps the node's own entry: load, memory, guests, whether it accepts."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from mig.config import Config
from mig.economy.load import TwoLoads
from mig.economy.price import NodeView
from mig.model import NodeInfo
from mig.tasks import beat
from omdiscd import resources
from omdiscd.procscan import ProcessTable


class Sampler:
    """Samples every ``sample_s`` and holds ``info``, the entry that goes out."""

    def __init__(self, config: Config, info: NodeInfo) -> None:
        self.config, self.info = config, info
        self.loads = TwoLoads(stability=config.stability, decay=config.decay)
        self.table = ProcessTable()
        self.runnable = 0.0
        self.quiet = False
        """The load that was told last stays as it is."""
        self.helpers: Callable[[], set[int]] = set
        """Pids of our own helpers: what they do is the price of moving, not load that could be moved away."""
        self.guests: Callable[[], set[int]] = set
        """Pids of guests that run here, which are below helpers and yet load."""
        self._use = resources.CpuUse()
        self.info.mem_total, self.info.mem_free, self.info.mem_unused = resources.memory(config.mem_total)
        self.table.look(time.monotonic())

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await beat(self.config.sample_s)
            self.sample()

    def sample(self) -> None:
        """One look."""
        self.table.look(time.monotonic())
        ours = self._ours()
        load = [p for p in self.table.processes.values() if p.pid not in ours]
        # processes that lived less than an interval are seen only in the CPU time that they used
        used = self._use.sample() - sum(self.table.processes[p].busy for p in ours if p in self.table.processes)
        self.runnable = max(sum(p.runnable for p in load), min(used, self.info.cpus))
        if not self.quiet:
            self.loads.sample(self.runnable)
        taken = sum(p.rss for p in self.table.processes.values()) if self.config.mem_total else 0
        self.info.mem_total, self.info.mem_free, self.info.mem_unused = resources.memory(self.config.mem_total, taken)
        self.publish()

    def _ours(self) -> set[int]:
        """Ourselves, our helpers and all below them, but not the guests."""
        ours = {os.getpid()}
        for p in self.helpers():
            ours |= {p, *self.table.below(p)}
        for g in self.guests():
            ours -= {g, *self.table.below(g)}
        return ours

    @property
    def _capacity(self) -> float:
        return self.info.cpus * self.info.speed

    def publish(self) -> None:
        """Bring the outgoing entry up to date with the loads."""
        self.info.load = self.loads.advertised / self._capacity

    def mine(self) -> NodeView:
        """This node as its own balancer sees it: the local load."""
        return NodeView.of(dataclasses.replace(self.info, load=self.loads.local / self._capacity))

    def live(self) -> NodeInfo:
        """This node's entry with its true load of the last interval, for somebody who asks before sending something here."""
        return dataclasses.replace(self.info, load=self.runnable / self._capacity)
