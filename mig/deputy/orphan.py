"""Deputies that nobody serves: their home agent was killed, and its guest has ended with it."""

from __future__ import annotations

import os
import signal

from mig import paths
from mig.kernel import pidfd
from mig.model import ProcessId


def is_deputy(pid: int) -> bool:
    """Whether the process runs the deputy's program."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(paths.libexec() / "deputy"))
    except OSError:
        return False


def end(pid: int, start: int) -> bool:
    """End the deputy ``pid``, started at ``start`` ticks, as a killed process ends; False when there is no such deputy (any more).

    It would wait for ever: it holds a copy of its agent's end of the link, so that another agent could take over.
    """
    who = ProcessId(pid, start, pidfd.boot_id())
    try:
        fd = pidfd.open_process(who)
    except ProcessLookupError:
        return False
    try:
        if not is_deputy(pid):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True
