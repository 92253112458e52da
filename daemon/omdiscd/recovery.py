"""First moves whose agent died in the middle: their processes stand frozen at home until the journal has been read."""

from __future__ import annotations

import logging

from mig import paths
from mig.migration import journal
from omdiscd.guests import Guests
from omdiscd.spawn import Spawner

log = logging.getLogger(__name__)


class Recovery:
    """Starts one recovering helper a move."""

    def __init__(self, node: int, guests: Guests, spawner: Spawner) -> None:
        self.node, self.guests, self.spawner = node, guests, spawner
        self._started: dict[str, int] = {}

    def look(self) -> None:
        """Start what is missing.  A move whose agent lives, or may be about to listen, is left alone."""
        self._started = {mid: pid for mid, pid in self._started.items() if pid in self.spawner.pids}
        for mid in journal.unfinished():
            home, pid, _ = mid.split("-", 2)
            if home != str(self.node) or mid in self._started:
                continue  # a hop from here to elsewhere: its home decides
            if self.guests.agent(int(pid)) or (paths.AGENTS / f"{pid}.sock").exists() or self.spawner.starting(int(pid)):
                continue
            log.warning("move %s was left unfinished by its agent: it is resolved now", mid)
            self._started[mid] = self.spawner.start("mig.agent.main", ["--recover", mid], paths.LOGS / f"agent-{pid}.log")
