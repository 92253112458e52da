"""Names of a guest's unix sockets while a move may still fail.

The copy's restore removes each and binds it anew, and a copy that is given up leaves a name that leads nowhere.  So the old socket is put
aside, in its directory, and comes back if the process goes on where it was.  It is renamed, not linked: the kernel, and CRIU at the next
dump, take a socket for deleted whose first name was removed.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mig.homefs.credentials import Credentials, Groups
from mig.homefs.guest import Guest

log = logging.getLogger(__name__)

T = TypeVar("T")

MARK = ".mig-moving"


def spare(name: str) -> str:
    """Where the socket with this path is put aside."""
    directory, base = os.path.split(name)
    return os.path.join(directory, f".{base}{MARK}")


def keep(names: Iterable[str]) -> list[str]:
    """Put each socket aside; returns those for which that was done.  What is no socket, or cannot be renamed, is left alone."""
    kept = []
    for name in names:
        try:
            if stat.S_ISSOCK(os.lstat(name).st_mode):
                os.rename(name, spare(name))
                kept.append(name)
        except FileNotFoundError:
            pass  # nobody can reach it by that name any more
        except OSError as e:
            log.warning("the socket %s cannot be kept, should the move fail: %s", name, e.strerror)
    return kept


def put_back(kept: Iterable[str]) -> None:
    """Each name leads to its old socket again, until :func:`forget` even if it is taken away once more.  Idempotent."""
    for name in kept:
        aside = spare(name)
        try:
            old = os.lstat(aside)
            if stat.S_ISSOCK(old.st_mode) and not _same(name, old):
                os.rename(aside, name)
                os.link(name, aside, follow_symlinks=False)
        except FileNotFoundError:
            pass  # it never was put aside
        except OSError as e:
            log.error("the socket %s could not be put back: %s", name, e.strerror)


def forget(kept: Iterable[str]) -> None:
    """Remove what was put aside."""
    for name in kept:
        aside = spare(name)
        try:
            if stat.S_ISSOCK(os.lstat(aside).st_mode):
                os.unlink(aside)
        except FileNotFoundError:
            pass
        except OSError as e:
            log.warning("%s stays behind: %s", aside, e.strerror)


def _same(name: str, as_: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(name), as_)
    except FileNotFoundError:
        return False


class GuestNames:
    """The same in the name of the guest, which alone decides what may be done in its directories."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def keep(self, names: Iterable[str], guest: Guest, groups: Groups) -> int:
        """As :func:`keep`; returns for how many."""
        self.kept = _as(guest, groups, lambda: keep(names)) if names else []
        return len(self.kept)

    def put_back(self, guest: Guest, groups: Groups) -> None:
        """As :func:`put_back`."""
        if self.kept:
            _as(guest, groups, lambda: put_back(self.kept))

    def forget(self, guest: Guest, groups: Groups) -> None:
        """As :func:`forget`."""
        if self.kept:
            _as(guest, groups, lambda: forget(self.kept))
        self.kept = []


def _as(guest: Guest, groups: Groups, what: Callable[[], T]) -> T:
    def act() -> T:
        Credentials(groups, guest).become(guest.uid, guest.gid)
        return what()

    # a thread of its own: whose thread became the guest stays so
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(act).result()
