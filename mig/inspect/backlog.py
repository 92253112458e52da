"""Connections by unix sockets that wait to be accepted, at a tree that stands still: which of them cannot be carried now.

CRIU makes such a connection anew, as long as both ends are the tree's, are open, and nothing has been sent: what was sent lies in a queue
that nobody can read but who accepts (it refuses to dump that).  A server accepts within moments, so a freeze that finds one is tried again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from mig.inspect.sockets import UnixDiag


def not_now(diag: UnixDiag, pids: Iterable[int]) -> str:
    """What stands in the way, as the end of "it has …"; "" if nothing does.  ``pids``: all processes of the frozen tree.

    Costs one question to the kernel about listening sockets, and more only when a connection waits at any of this network namespace.
    """
    if not (waiting := diag.unaccepted()):
        return ""
    ours = set[int]()
    for p in pids:
        ours |= _sockets(p)
    for listener, clients in waiting.items():
        if listener not in ours:
            if ours.intersection(clients):
                return "a connection by a unix socket that a process outside of its tree has not accepted yet"
        elif 0 in clients:
            return "a connection by a unix socket that was closed before it was accepted"
        elif any(diag.unread(ino) for ino in clients):
            return "data on a connection by a unix socket that is not accepted yet"
    return ""


def _sockets(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open."""
    out = set()
    try:
        with os.scandir(f"/proc/{pid}/fd") as fds:
            for fd in fds:
                target = os.readlink(fd.path)
                if target.startswith("socket:["):
                    out.add(int(target[len("socket:[") : -1]))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass  # a zombie, or one that ended meanwhile
    return out
