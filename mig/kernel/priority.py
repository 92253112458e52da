"""The priority of omdiscd and its helpers.

A busy node is what processes leave, so what moves them must not wait for its work.  But while a move is prepared, the process that is to
move still runs, and on a full node it would stand aside for its helpers, 40 ms at a time: helpers begin as ordinary processes, and are high
from the moment that it stands still.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

HIGH = -10
"""Nice value.  With 46 busy processes on 0.4 CPUs a node was suspect half of the time, at 0; at -15 the process that was to move stood for
80-96 ms while the helpers started, on a machine of two cores.  A guest keeps its own."""
ORDINARY = 0


def high() -> None:
    """This process from now on, and what it starts; where that is not allowed, as in some containers, nothing changes."""
    _set(os.PRIO_PROCESS, 0, HIGH)


def ordinary() -> None:
    """This process from now on, and what it starts."""
    _set(os.PRIO_PROCESS, 0, ORDINARY)


def group_high(more: Iterable[int] = ()) -> None:
    """All processes of our process group, which are a helper's own helpers, and ``more``, processes of one thread, by pid."""
    _set(os.PRIO_PGRP, 0, HIGH)
    for pid in more:
        _set(os.PRIO_PROCESS, pid, HIGH)


def _set(which: int, who: int, nice: int) -> None:
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpriority(which, who, nice)
