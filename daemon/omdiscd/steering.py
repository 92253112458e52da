"""openMosix's knobs at run time: the node's speed, who stays, where a process may run."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from mig.config import Config
from mig.errors import BadInput, NotPermitted
from mig.kernel import procfs
from omdiscd import resources
from omdiscd.control import Call, Handler
from omdiscd.events import Events
from omdiscd.jobs import Job, Jobs
from omdiscd.moves import Mover
from omdiscd.sampler import Sampler
from omdiscd.switches import WORDS, Switches

FASTEST = 1000.0
"""Standard CPUs: a greater speed is a typing mistake."""


class Steering:
    """The handlers; :meth:`table` maps them to their names on the wire."""

    def __init__(self, config: Config, sampler: Sampler, switches: Switches, jobs: Jobs, mover: Mover, events: Events) -> None:
        self.config, self.sampler, self.switches, self.jobs, self.mover, self.events = config, sampler, switches, jobs, mover, events
        if switches.speed:
            sampler.info.speed = switches.speed
        sampler.quiet = switches.quiet

    def table(self) -> dict[str, Handler]:
        """Handlers by op."""
        return {"setspeed": self.setspeed, "switch": self.switch, "mask": self.mask}

    async def setspeed(self, call: Call) -> dict[str, Any]:
        """``{speed}`` -> ``{speed}``: relative to a standard CPU, kept until the next boot; 0: as configured or measured."""
        _only_root(call, "set the speed of this node")
        value = call.request.get("speed")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadInput(f"{value!r} is not a speed", hint="a number relative to a standard CPU (1.0), or 0 to measure it")
        if not 0 <= value <= FASTEST:
            raise BadInput(f"speed {value:g} makes no sense: it must be 0 to {FASTEST:g}", hint="1.0 is a standard CPU; 0 measures it")
        self.switches.speed = float(value)
        self.switches.save()
        info = self.sampler.info
        info.speed = float(value) or self.config.speed or await asyncio.to_thread(resources.speed)
        self.sampler.publish()
        self.events.add("setspeed", home=info.name, outcome=f"{info.speed:g}")
        return {"speed": info.speed}

    async def switch(self, call: Call) -> dict[str, Any]:
        """``{name, on}``: one of :data:`omdiscd.switches.WORDS`."""
        name, on = call.request.get("name"), bool(call.request.get("on"))
        if name not in WORDS:
            raise BadInput(f"{name!r} is not a switch; known: {', '.join(WORDS)}")
        _only_root(call, f"turn {name} {'on' if on else 'off'}")
        setattr(self.switches, name, on)
        self.switches.save()
        self.sampler.quiet = self.switches.quiet
        self.events.add("switch", home=self.sampler.info.name, outcome=f"{name} {'on' if on else 'off'}")
        return {"switches": self.switches.on()}

    async def mask(self, call: Call) -> dict[str, Any]:
        """``{pid, nodes}``: the only nodes on which it may run from now on; empty: any.  Home is always allowed by hand."""
        s = self.mover.subject(call.request.get("pid"))
        self.mover.permit(s, call.caller.uid)
        if s.home != self.sampler.info.name:
            raise BadInput(f"process {s.pid} ({s.comm}) belongs to {s.home}", hint=f"type it there: mosctl mask {s.home_pid} …")
        nodes = call.request.get("nodes") or []
        if not isinstance(nodes, list):
            raise BadInput("nodes must be a list of names")
        names = [self.mover.targets.find(str(n)).name for n in nodes]
        job = self.jobs.table.get(s.home_pid) or Job(s.home_pid, procfs.stat(s.home_pid).start, s.uids[0], s.comm)
        job.nodes = names
        self.jobs.register(job)
        return {"pid": s.pid, "nodes": names}


def _only_root(call: Call, what: str) -> None:
    if call.caller.uid != 0:
        raise NotPermitted(f"only root may {what}")
