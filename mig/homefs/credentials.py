"""Acting as the guest: file system uid, gid and supplementary groups of one thread, so that home decides and owns as it would locally."""

from __future__ import annotations

import ctypes
import os
import pwd

from mig.homefs import syscalls
from mig.homefs.guest import Guest

Groups = dict[int, list[int]]
"""Supplementary groups by uid."""


class Credentials:
    """What the thread that made this object acts as.  Each serving thread makes its own; a new thread begins as root, and keeps of root's
    privileges what switching and files need, unless the guest is root's."""

    def __init__(self, groups: Groups, guest: Guest) -> None:
        self._groups, self._guest = groups, guest
        if not guest.privileged:
            syscalls.keep_capabilities(syscalls.CAPS_OF_FILES | syscalls.CAPS_OF_IDS)
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
                gids = login_groups(uid, gid)
                if not self._guest.privileged:
                    gids = [g for g in gids if g in self._guest.gids]
                self._logins[uid, gid] = gids
        return (ctypes.c_uint * len(gids))(*gids)


def login_groups(uid: int, gid: int) -> list[int]:
    """The groups that a login would give to a uid that the guest took only after it had left home."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return []
    return os.getgrouplist(name, gid)
