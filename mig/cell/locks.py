"""Locks of a guest as CRIU wants to see them in its images, from the table of home's file server."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from mig.criu.images import FL_FLOCK, FL_POSIX, Lock
from mig.kernel import procfs

F_RDLCK, F_WRLCK = 0, 1


def of_guest(held: Iterable[dict[str, Any]], pids: Iterable[int]) -> list[Lock]:
    """Match each lock of the server's table to a descriptor of the guest by inode; pids in the result are those inside the cell.

    The table knows inodes and handles, not descriptors; where several descriptors have one inode open the first takes the lock.
    """
    open_files: dict[int, list[tuple[int, int]]] = {}
    for p in pids:
        inner = procfs.status(p).nspid[-1]
        for fd in procfs.descriptors(p):
            try:
                ino = os.stat(f"/proc/{p}/fd/{fd}").st_ino
            except OSError:
                continue
            open_files.setdefault(ino, []).append((inner, fd))
    out = []
    for h in held:
        where = open_files.get(int(h["ino"]))
        if where:
            pid, fd = where[0]
            flag = FL_FLOCK if h["kind"] == "flock" else FL_POSIX
            kind = F_WRLCK if h["type"] == "write" else F_RDLCK
            out.append(Lock(flag, kind, pid, fd, int(h.get("start", 0)), int(h.get("len", 0))))
    return out
