"""Moves whose helper died in the middle: what the journals say may be done, at the source and at the destination."""

from __future__ import annotations

import logging
import sys

from mig import paths
from mig.kernel import pidfd
from mig.migration import journal
from mig.migration.journal import ABORTED, PREPARED, Journal
from mig.model import ProcessId
from omdiscd.guests import Guests
from omdiscd.spawn import Spawner

log = logging.getLogger(__name__)


class Recovery:
    """The source's side.  A first move without its agent leaves the process frozen at home: one recovering helper a move resolves that."""

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
            argv = [sys.executable, "-m", "mig.agent.main", "--recover", mid]
            self._started[mid] = self.spawner.helper(argv, paths.LOGS / f"agent-{pid}.log", ()).pid


def verdict(mid: str) -> str:
    """As :func:`mig.migration.journal.verdict`, and ``aborted`` for a keeper that died before it decided: its cell died with it.

    The tombstone is written, so that the answer stays the same for ever.
    """
    answer = journal.verdict(mid)
    if answer != "pending":
        return answer
    j = Journal(mid, "destination")
    prepared = next((r.data for r in j.read() if r.name == PREPARED), None)
    if prepared is None or pidfd.still(ProcessId(int(prepared["keeper"]), int(prepared["start"]), str(prepared["boot"]))):
        return answer
    if journal.verdict(mid) == "pending":  # its last word may have come between our look at the file and its end
        j.write(ABORTED)
    return journal.verdict(mid)
