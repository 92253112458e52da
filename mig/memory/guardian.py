"""Guardians: processes that share the pager's descriptors, so that no crash of the pager closes a userfaultfd.

A userfaultfd that nobody holds any more lets go of its memory, and pages that have not arrived read as zeros: silent corruption.  A
guardian is made by ``clone(CLONE_FILES)``: every descriptor of the pager, those that the kernel makes for a forked child too, is its own
as well.  While one of them lives, threads that need a missing page wait.

It does one thing: when the keeper is gone (whose cell must end with it) it kills the cell, waits until nothing is left of it, and ends.
Whether a dead pager is replaced is the keeper's decision.

There are two (:data:`COUNT`), each in a session of its own: pager, keeper and one of them may die in the same instant, by hand or by a
signal to their process group, and the other still ends the guest before it can read a page that has not come.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from pathlib import Path

from mig.kernel import libc

_NR_CLONE = 56  # x86-64
_CLONE_FILES = 0x400
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 6
_libc.syscall.restype = ctypes.c_long
_PATIENCE = 30.0
COUNT = 2


def start(keeper: int, cell: Path) -> int:
    """Fork a guardian of the calling process, which has one thread; returns its pid.  ``cell``: a cgroup; ``keeper``: a pid."""
    pid = int(_libc.syscall(_NR_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    if pid == 0:
        try:
            guard(keeper, cell)
        finally:
            os._exit(0)
    return pid


def guard(keeper: int, cell: Path) -> None:
    """A guardian's life."""
    libc.set_name("mig-guardian")
    os.setsid()
    with contextlib.suppress(OSError):  # it has no memory to speak of, and must not be chosen for lack of it
        Path("/proc/self/oom_score_adj").write_text("-1000")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        watched = os.pidfd_open(keeper)
    except ProcessLookupError:
        end(cell)
        return
    select.select([watched], [], [])
    end(cell)


def end(cell: Path) -> None:
    """Kill what is in the cell, frozen or not, and wait until it is gone."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(FileNotFoundError):
        (cell / "cgroup.kill").write_text("1")
        while "populated 1" in (cell / "cgroup.events").read_text() and time.monotonic() < deadline:
            time.sleep(0.002)
