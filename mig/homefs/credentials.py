"""Acting as the guest: file system uid, gid and supplementary groups of one thread, so that home decides and owns as it would locally."""

from __future__ import annotations

import ctypes
import os
import pwd

from mig.homefs import syscalls

Groups = dict[int, list[int]]
"""Supplementary groups by uid."""


class Credentials:
    """What the thread that made this object acts as.  Each serving thread makes its own; a new thread begins as root."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._now = (-1, -1)
        self._given: list[int] | None = None
        self._logins: dict[tuple[int, int], list[int]] = {}
        self.become(0, 0)

    def become(self, uid: int, gid: int) -> None:
        """Act as ``uid`` and ``gid`` from here on; costs nothing when the thread does already."""
        if self._now == (uid, gid) and self._groups.get(uid) is self._given:
            return
        # CAP_SETGID is not among the capabilities that setfsuid takes away, so no way through root is needed
        syscalls.setgroups(self._list(uid, gid))
        syscalls.setfsgid(gid)
        syscalls.setfsuid(uid)
        self._now = (uid, gid)

    def _list(self, uid: int, gid: int) -> ctypes.Array[ctypes.c_uint]:
        gids = self._given = self._groups.get(uid)
        if gids is None:
            gids = self._logins.get((uid, gid))
            if gids is None:
                gids = self._logins[uid, gid] = login_groups(uid, gid)
        return (ctypes.c_uint * len(gids))(*gids)


def login_groups(uid: int, gid: int) -> list[int]:
    """The groups that a login would give to a uid that the guest took only after it had left home.

    The host's kernel has checked the mode bits with the process's true groups before, so that this cannot widen what it may do.
    """
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return []
    return os.getgrouplist(name, gid)
