"""Where the guest stands in files whose open description it shared with processes at home (``{ job; echo end; } > out``).

Reading goes through the host's page cache, so home cannot see it.  But a duplicate of the guest's descriptor shares its position, and
outlives the guest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from mig.kernel import libc, procfs
from mig.model import SharedFile

log = logging.getLogger(__name__)


class Positions:
    """Duplicates of the guest's descriptors, by index in ``shared``.  Taken while the guest stands still after its restore."""

    def __init__(self, shared: list[SharedFile], pids: Iterable[int]) -> None:
        here = {procfs.status(p).nspid[-1]: p for p in pids}
        self._fds: dict[int, int] = {}
        for i, f in enumerate(shared):
            if f.pid not in here:
                continue
            try:
                fd = libc.pidfd_getfd(here[f.pid], f.fd)
            except OSError as e:
                log.info("descriptor %d of %d is closed: %s", f.fd, f.pid, e)
                continue
            if os.fstat(fd).st_ino == f.ino:
                self._fds[i] = fd
            else:
                os.close(fd)  # the number has been used for another file since it left home

    def read(self) -> dict[int, int]:
        """The positions now, in bytes from the start."""
        return {i: os.lseek(fd, 0, os.SEEK_CUR) for i, fd in self._fds.items()}

    def close(self) -> None:
        """Let go; idempotent."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
