"""What becomes of a process whose agent died in the middle of its first move.

The journal decides.  No COMMIT: nobody else can ever run it, so it is thawed and goes on at home.  COMMIT: the destination is asked until
it knows; only its word ``aborted`` allows a thaw.  ``running`` means that the guest ran there and was ended with its agent (a guest
without a home agent has no terminal, files or exit status), so the frozen original is ended too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

from mig.agent import home_locks
from mig.agent.home_source import leave
from mig.deputy import mend
from mig.homefs import names
from mig.kernel import pidfd
from mig.kernel.cgroup import Cgroup
from mig.migration.journal import ARRIVED, BEGIN, CAPTURED, COMMIT, FROZEN, NAMED, ROLLED_BACK, UNLOCKED, Journal, unfinished
from mig.migration.peer import Destination
from mig.model import NodeInfo, ProcessId

log = logging.getLogger(__name__)


async def recover(mid: str) -> str:
    """Resolve the unfinished move ``mid``; returns ``thawed``, ``ended`` or ``gone``."""
    journal = Journal(mid, "source")
    records = {r.name: r.data for r in journal.read()}
    begin = records.get(BEGIN)
    if begin is None or "cgroup" not in begin or ARRIVED in records or ROLLED_BACK in records:
        return "gone"
    who = ProcessId(int(begin["pid"]), int(begin["start"]), pidfd.boot_id())
    group = Cgroup(begin["cgroup"])
    state, dest = "aborted", None
    if COMMIT in records:
        dest = Destination(NodeInfo.from_map(begin["to"]))
        while (state := await _ask(dest, mid)) not in ("running", "aborted"):
            await asyncio.sleep(1)
    outcome = "gone"
    if pidfd.still(who):
        if state == "running":
            log.warning("%d ran elsewhere and ended with its agent; the frozen original is ended", who.pid)
            os.kill(who.pid, signal.SIGKILL)
            outcome = "ended"
        else:
            log.info("%d was not committed: it goes on at home", who.pid)
            outcome = "thawed"
    sockets = [str(n) for n in records.get(NAMED, {}).get("names", [])]
    if outcome == "thawed":
        names.put_back(sockets)
    if group.exists():
        _undo(group, who.pid, records)
    names.forget(sockets)
    if dest is not None:
        await dest.known(mid)
    journal.write(ROLLED_BACK)
    journal.forget()
    return outcome


def _undo(group: Cgroup, pid: int, records: dict[str, dict[str, Any]]) -> None:
    """As the agent would have rolled back: locks, then the thaw with interrupted calls mended, then the old cgroups."""
    home_locks.take_again(home_locks.found_again(records.get(UNLOCKED, {}).get("flocks", [])))
    calls = [mend.Call(p, t, nr, tuple(args)) for p, t, nr, args in records.get(FROZEN, {}).get("calls", [])]
    mend.mend_running(calls, group.thaw)
    leave(group, {int(p): Path(g) for p, g in records.get(CAPTURED, {}).get("groups", [])}, pid)


def left_by_others(pid: int) -> list[str]:
    """Unfinished first moves of process ``pid``: their agents are dead, as there is one agent for a process at a time."""
    return [mid for mid in unfinished() if mid.split("-")[1] == str(pid)]


async def _ask(dest: Destination, mid: str) -> str:
    try:
        return await dest.ask(mid)
    except (OSError, EOFError, TimeoutError):
        return ""
