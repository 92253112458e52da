"""Keeps the node's own entry: load, memory, guests, whether it accepts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time

from mig.config import Config
from mig.economy.load import TwoLoads
from mig.economy.price import NodeView
from mig.model import NodeInfo
from omdiscd import resources
from omdiscd.procscan import ProcessTable

log = logging.getLogger(__name__)


class Sampler:
    """Samples every ``sample_s`` and holds ``info``, the entry that goes out."""

    def __init__(self, config: Config, info: NodeInfo) -> None:
        self.config, self.info = config, info
        self.loads = TwoLoads()
        self.table = ProcessTable()
        self.runnable = 0.0
        self._use = resources.CpuUse()
        self._capacity = info.cpus * info.speed
        self.info.mem_total, self.info.mem_free = resources.memory(config.mem_total)
        self.table.look(time.monotonic())

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(self.config.sample_s)
            self.sample()

    def sample(self) -> None:
        """One look."""
        runnable = self.table.look(time.monotonic())
        # processes that lived less than an interval are seen only in the CPU time that they used
        self.runnable = max(runnable, min(self._use.sample(), self.info.cpus))
        self.loads.sample(self.runnable)
        self.info.mem_total, self.info.mem_free = resources.memory(self.config.mem_total)
        self.publish()

    def publish(self) -> None:
        """Bring the outgoing entry up to date with the loads."""
        self.info.load = self.loads.advertised / self._capacity

    def mine(self) -> NodeView:
        """This node as its own balancer sees it: the local load."""
        return NodeView.of(dataclasses.replace(self.info, load=self.loads.local / self._capacity))

    def live(self) -> NodeInfo:
        """This node's entry with its load of the last interval, for somebody who asks before sending something here."""
        return dataclasses.replace(self.info, load=max(self.runnable, self.loads.local) / self._capacity)
