"""Whether the named unix sockets of a tree are for its own processes alone, so that they may go along with it.

What a name is for cannot be seen: the user says so (``mosrun -S``, ``migrate --own-sockets``), and a file in the run-time directory
remembers it, where every helper that looks at the process finds it.  Python's multiprocessing has names that speak for themselves.
"""

from __future__ import annotations

import contextlib
import os
import re

from mig import paths
from mig.kernel import procfs

KNOWN = re.compile(r"/pymp-[^/]+/listener-[^/]+$")
"""Sockets of Python's multiprocessing (forkserver, managers, listeners), in a directory that only their own user can enter."""


def declare(pid: int) -> None:
    """The sockets of ``pid`` and all below it are its own from now on.  Raises ``ProcessLookupError`` when there is no such process."""
    start = procfs.stat(pid).start
    paths.OWN_SOCKETS.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in os.listdir(paths.OWN_SOCKETS):
        if not declared(int(name)):
            with contextlib.suppress(FileNotFoundError):
                (paths.OWN_SOCKETS / name).unlink()
    new = paths.OWN_SOCKETS / f"{pid}"
    new.write_text(str(start))


def declared(pid: int) -> bool:
    """Whether :func:`declare` was called for the process that has this number now."""
    try:
        return (paths.OWN_SOCKETS / f"{pid}").read_text() == str(procfs.stat(pid).start)
    except (FileNotFoundError, ProcessLookupError):
        return False
