"""Memory of a process that stands still goes to the swap space, if the machine has any: process_madvise(2) with MADV_PAGEOUT."""

from __future__ import annotations

import logging
import os

from mig.kernel import libc, procfs

log = logging.getLogger(__name__)

MADV_PAGEOUT = 21
CHUNK = 64 << 20
"""Bytes of one call, which cannot be interrupted."""


def page_out(pid: int) -> int:
    """Ask the kernel to write out what is anonymous or shared memory of ``pid``; bytes that it was asked for.  Files stay as they are.

    What the kernel does not want to write out stays in memory: without swap space, all of it.  Raises ``ProcessLookupError``.
    """
    asked = 0
    pidfd = os.pidfd_open(pid)
    try:
        for m in procfs.maps(pid):
            if (m.ino and not m.path.startswith(("/dev/zero", "/SYSV", "/memfd:"))) or m.path.startswith("[v"):
                continue
            for at in range(m.start, m.end, CHUNK):
                try:
                    asked += libc.process_madvise(pidfd, at, min(CHUNK, m.end - at), MADV_PAGEOUT)
                except OSError as e:  # locked memory, say; or a kernel that cannot do it
                    log.debug("process %d, %#x: %s", pid, at, e)
    finally:
        os.close(pidfd)
    return asked
