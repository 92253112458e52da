"""Clears away what agents and keepers left that were killed: image directories, cells, journals that nobody will ask about.

Stateless, so that a restarted omdiscd does it as well.  What a journal still has to decide (a first move whose agent died) is none of
this module's business: see :mod:`mig.agent.recover`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from pathlib import Path

from mig import paths
from mig.agent import holding, workdir
from mig.kernel import cgroup, pidfd
from mig.kernel.cgroup import Cgroup
from mig.migration.journal import BEGIN, PREPARED, RUNNING, Journal
from mig.model import ProcessId

log = logging.getLogger(__name__)


_IMAGES = (*workdir.CANDIDATES, workdir.DISK)
"""Where directories of images are."""


def litter() -> bool:
    """Whether there is anything to look at.  As a rule there is not, and a thread for :func:`sweep` would cost more than this look."""
    for place in (*_IMAGES, paths.JOURNAL):
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(place):
                return True
    return any(n.startswith(holding.PREFIX) for n in os.listdir(_root()))


@functools.cache
def _root() -> Path:
    """The cgroup file system, which does not move while we run."""
    return cgroup.root()


def sweep() -> list[str]:
    """Remove all of it; returns what was removed.  Blocking, milliseconds as a rule."""
    removed = []
    for base in _IMAGES:
        for d in sorted(base.iterdir()) if base.is_dir() else ():
            if (maker := workdir.owner(d)) is not None and not pidfd.still(maker):
                _drop(d)
                removed.append(d.name)
    for group in sorted(_root().glob(f"{holding.PREFIX}*")):
        if (owner := holding.owner(group.name)) is not None and not pidfd.still(owner):
            log.warning("members of a tree that has left outlived their agent %d: they are ended", owner.pid)
            holding.end_group(Cgroup(group))
            removed.append(group.name)
    for f in sorted(paths.JOURNAL.glob("*.destination")):
        if _unneeded(Journal(f.stem, "destination")):
            f.unlink(missing_ok=True)
            removed.append(f.name)
    for f in sorted(paths.JOURNAL.glob("*.source")):
        if _ended_with_keeper(Journal(f.stem, "source")):
            f.unlink(missing_ok=True)
            removed.append(f.name)
    return removed


def _drop(d: Path) -> None:
    mid, _, side = d.name.rpartition(".")
    if side == "destination":
        cell = Cgroup(cgroup.root() / f"mig-cell-{mid}")
        if cell.exists():
            log.warning("the cell of move %s outlived its keeper: it is ended", mid)
            cell.kill()
            cell.remove()
    shutil.rmtree(d, ignore_errors=True)


def _unneeded(journal: Journal) -> bool:
    """Whether the destination's keeper is dead and never accepted GO: no journal at all says the same, ``aborted``."""
    records = {r.name: r.data for r in journal.read()}
    if RUNNING in records or PREPARED not in records:
        return False
    keeper = records[PREPARED]
    return not pidfd.still(ProcessId(int(keeper["keeper"]), int(keeper["start"]), str(keeper["boot"])))


def _ended_with_keeper(journal: Journal) -> bool:
    """Whether it is of a move on from here whose keeper is dead, and its guest with it: nothing is left that could go on."""
    begin = next((r.data for r in journal.read() if r.name == BEGIN), {})
    if "keeper" not in begin:
        return False
    return not pidfd.still(ProcessId(int(begin["keeper"]), int(begin["keeper_start"]), pidfd.boot_id()))
