"""flock(2) locks that processes on this node hold through home's own kernel, let go for a move and taken again if it is given up.

A frozen process cannot unlock, but the lock belongs to the open file description, of which ``pidfd_getfd`` gives us a duplicate.  Record
locks (fcntl) belong to the process itself and cannot be dropped from outside: home's file server lets the guest inherit those.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mig.kernel import libc

log = logging.getLogger(__name__)

_LINE = re.compile(r"^lock:\s+\d+: (FLOCK|POSIX|OFDLCK)\s+\S+\s+(READ|WRITE)", re.M)


@dataclass
class Flock:
    """A lock that was let go; ``fd`` is our duplicate of the description that held it."""

    fd: int
    exclusive: bool


def scan(pids: Iterable[int]) -> tuple[list[tuple[int, int, bool]], list[tuple[int, int]]]:
    """(pid, fd, exclusive) for every flock, and (pid, fd) for every descriptor whose file has record locks of its process."""
    flocks: list[tuple[int, int, bool]] = []
    records: list[tuple[int, int]] = []
    for p in pids:
        try:
            fds = sorted(int(x) for x in os.listdir(f"/proc/{p}/fdinfo"))
        except FileNotFoundError:
            continue
        for fd in fds:
            try:
                with open(f"/proc/{p}/fdinfo/{fd}") as f:
                    info = f.read()
                for kind, mode in _LINE.findall(info):
                    if kind == "FLOCK":
                        flocks.append((p, fd, mode == "WRITE"))
                    else:
                        records.append((p, fd))
            except FileNotFoundError:
                continue  # closed meanwhile
    return flocks, records


def release(pids: Iterable[int], note: Callable[[list[tuple[int, int, bool]]], None] = lambda held: None) -> list[Flock]:
    """Let go of every flock of the frozen processes ``pids``; ``note`` hears of all of them before."""
    out: list[Flock] = []
    held = scan(pids)[0]
    note(held)
    for p, fd, exclusive in held:
        copy = libc.pidfd_getfd(p, fd)
        fcntl.flock(copy, fcntl.LOCK_UN)  # a second descriptor of one description unlocks what is unlocked: harmless
        out.append(Flock(copy, exclusive))
    return out


PATIENCE = 1.0
"""Seconds for the end of who holds a lock for the guest's copy, where that has just been killed."""


def take_again(held: list[Flock]) -> None:
    """The move was given up: as before, before the thaw.  A lock that somebody else has taken meanwhile is reported."""
    deadline = time.monotonic() + PATIENCE
    for h in held:
        while not _taken(h):
            if time.monotonic() >= deadline:
                log.error("a lock was taken by somebody else while the process stood frozen; it runs on without it")
                break
            time.sleep(0.01)
    forget(held)


def _taken(h: Flock) -> bool:
    try:
        fcntl.flock(h.fd, (fcntl.LOCK_EX if h.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def found_again(held: Iterable[tuple[int, int, bool]]) -> list[Flock]:
    """What a dead agent had let go of, from its notes; descriptors that are gone are left out."""
    out = []
    for p, fd, exclusive in held:
        with contextlib.suppress(OSError):
            out.append(Flock(libc.pidfd_getfd(p, fd), exclusive))
    return out


def forget(held: list[Flock]) -> None:
    """The guest holds them through home's file server from now on."""
    for h in held:
        os.close(h.fd)
    held.clear()
