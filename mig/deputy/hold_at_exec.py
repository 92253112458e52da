"""Catch a process at its next exec, so that it can move before the first instruction of the new program (``mosrun -b``)."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from mig.kernel.cgroup import Cgroup
from mig.kernel.ptrace import (
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_STOP,
    PTRACE_LISTEN,
    PTRACE_O_TRACEEXEC,
    Tracee,
    TraceeDied,
    passed_on,
    ptrace,
)

JOB_CONTROL_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def hold_at_exec(pid: int, cgroup: Cgroup, ready: Callable[[], None]) -> None:
    """Wait, blocking, until ``pid`` (of a single thread) execs; then it stands frozen in ``cgroup``, traced by nobody.

    The group is created and entered here.  ``ready`` is called once nothing can be missed any more: the process may be told to exec from
    then on.  Signals and job control work as without us.  The calling thread is the tracer: should it end before, the process runs on.

    Raises:
        ProcessLookupError: the process ended without an exec.
        OSError: it is traced by somebody else (``EPERM``), or could not be moved into the group.
        TimeoutError: it could not be frozen; it runs on, untraced.
    """
    cgroup.create()
    if pid not in cgroup.procs():
        cgroup.add(pid)
    tracee = Tracee(pid, PTRACE_O_TRACEEXEC, suspend_seccomp=False)
    try:
        try:
            ready()
        except BaseException:
            tracee.stop()  # only a stopped tracee can be let go
            raise
        _wait_for_exec(tracee)
        cgroup.freeze()  # a thread in a ptrace stop counts as frozen, and stays so after the detach
    except TraceeDied as e:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} ended without an exec") from e
    except BaseException:
        tracee.detach()
        raise
    tracee.detach()


def _wait_for_exec(tracee: Tracee) -> None:
    while (status := tracee.wait()) >> 16 != PTRACE_EVENT_EXEC:
        if status >> 16 == PTRACE_EVENT_STOP and os.WSTOPSIG(status) in JOB_CONTROL_STOPS:
            ptrace(PTRACE_LISTEN, tracee.tid)  # a group stop: stay stopped until SIGCONT, as without a tracer
        else:
            tracee.cont(passed_on(status))
