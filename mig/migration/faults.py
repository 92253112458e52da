"""Named fault points: tests stop, fail or kill a participant exactly there.

A point is switched on by a file of its name in ``paths.FAULTS`` whose content is ``die`` (SIGKILL to this process), ``fail`` (raise) or
``hang`` (stand still until the file is gone).  ``<name>.hit`` appears when it is reached.  Production nodes have ``faults = false`` and
never look.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from enum import StrEnum

from mig import paths


class Fault(StrEnum):
    """Where a move can be made to fail.  Those from AFTER_COMMIT on are past the point of no return."""

    BEFORE_PREPARE = "before_prepare"  # destination, the request accepted
    BEFORE_FREEZE = "before_freeze"  # source
    AFTER_FREEZE = "after_freeze"
    AFTER_DUMP = "after_dump"
    MID_TRANSFER = "mid_transfer"  # source, half of the images sent
    BEFORE_RESTORE = "before_restore"  # destination, all images there
    AT_BARRIER = "at_barrier"  # destination, restored and frozen, not yet ready
    BEFORE_COMMIT = "before_commit"  # source, destination ready
    AFTER_COMMIT = "after_commit"  # source, journal written, GO not sent
    BEFORE_RUNNING = "before_running"  # destination, GO received, not yet accepted
    AFTER_GO = "after_go"  # destination, running, not yet said
    BEFORE_PLACED = "before_placed"  # pager, all memory is on its node and not all in its place; the source does not know it yet
    MID_POSTCOPY = "mid_postcopy"  # pager (destination) or page source, half of the memory after the resume


class InjectedFault(Exception):
    """Raised at a point that is set to ``fail``."""


enabled = False
"""Set once at start from the configuration."""


def _forget() -> None:
    global enabled
    enabled = False


os.register_at_fork(after_in_child=_forget)  # a helper sets it anew, if it has points


async def reach(point: Fault) -> None:
    """Pass a fault point: returns at once unless it is switched on."""
    if _met(point):
        while (paths.FAULTS / point.value).exists():
            await asyncio.sleep(0.02)


def pass_by(point: Fault) -> None:
    """As :func:`reach`, for who has no loop; blocking."""
    if _met(point):
        while (paths.FAULTS / point.value).exists():
            time.sleep(0.02)


def _met(point: Fault) -> bool:
    """Die or fail as the point says; whether to stand still."""
    if not enabled:
        return False
    try:
        action = (paths.FAULTS / point.value).read_text().strip()
    except FileNotFoundError:
        return False
    (paths.FAULTS / f"{point.value}.hit").touch()
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fail":
        raise InjectedFault(f"fault point {point.value}")
    return True
