"""Whether the guest may have files of home opened for it by name: asked when it comes home, before CRIU does that as root."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from mig.homefs.credentials import Credentials
from mig.homefs.guest import CHANGES, READS, RUNS, WRITES
from mig.homefs.server import HomeServer

_OWN = ("/dev/", "/proc/")
"""What a cell has of its own, at home too; which of it may be opened the images' first look has decided."""


def refused(server: HomeServer, files: Sequence[tuple[str, int]]) -> list[str]:
    """Those of ``files`` (path, what is done with it: ``READS`` …) that the guest's ids do not allow it, and that it does not hold so."""
    if server.guest.privileged:
        return []
    wanted = [(path, needs) for path, needs in files if not path.startswith(_OWN)]
    closed: list[tuple[str, int]] = []

    def as_guest() -> None:
        guest = Credentials(server.groups, server.guest)
        for path, needs in wanted:
            for uid in sorted(server.guest.uids):
                guest.become(uid, server.guest.gid)
                if _may(path, needs):
                    break
            else:
                closed.append((path, needs))

    # a thread of its own: it does not come back from being the guest
    thread = threading.Thread(target=as_guest, name="reopen")
    thread.start()
    thread.join()
    return [path for path, needs in closed if not _held(server, path, needs)]


def _may(path: str, needs: int) -> bool:
    """Whether who we act as may do that."""
    try:
        fd = os.open(os.path.dirname(path) if needs & CHANGES else path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        file = f"/proc/self/fd/{fd}"
        if needs & CHANGES and not os.access(file, os.W_OK | os.X_OK, effective_ids=True):
            return False
        if needs & RUNS and not (os.access(file, os.X_OK, effective_ids=True) or os.access(file, os.R_OK, effective_ids=True)):
            return False
        mode = (os.R_OK if needs & READS else 0) | (os.W_OK if needs & WRITES else 0)
        return bool(needs & CHANGES) or os.access(file, mode, effective_ids=True)
    finally:
        os.close(fd)


def _held(server: HomeServer, path: str, needs: int) -> bool:
    """Whether it holds this file in that way, however it came by it; what is not there is opened by nobody."""
    if needs & CHANGES:
        return False
    try:
        st = os.stat(path)
    except OSError:
        return True
    known = server.access((st.st_dev, st.st_ino))
    return known is not None and not (READS if needs & RUNS else needs) & ~known
