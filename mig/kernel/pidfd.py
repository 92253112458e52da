"""Which process a pid means: pid, start time and boot; a pidfd is what we hold while we act on it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mig.kernel import procfs
from mig.model import ProcessId


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot; containers of one machine share it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> ProcessId:
    """Who ``pid`` is now; raises ``ProcessLookupError`` when nobody."""
    return ProcessId(pid, procfs.stat(pid).start, boot_id())


def still(who: ProcessId) -> bool:
    """Whether the pid still means this process (a zombie does count)."""
    try:
        return identity(who.pid) == who
    except ProcessLookupError:
        return False


def open_process(who: ProcessId) -> int:
    """A pidfd, close-on-exec, of this very process; raises ``ProcessLookupError`` when the pid means another by now."""
    fd = os.pidfd_open(who.pid)
    # looked up after the open: if the pid had changed hands before, the start time shows it; later the pidfd holds
    if not still(who):
        os.close(fd)
        raise ProcessLookupError(3, f"process {who.pid} is not the one that was meant")
    return fd
