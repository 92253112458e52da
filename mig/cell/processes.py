"""Forks with a wanted pid, and processes that stand for others by their number alone."""

from __future__ import annotations

import os
import signal

from mig.kernel import libc


def next_pid(pid: int) -> None:
    """The next process of our pid namespace gets this pid, if it is free; nobody else may fork between."""
    with open("/proc/sys/kernel/ns_last_pid", "w") as f:
        f.write(str(pid - 1))


def fork_as(pid: int) -> int:
    """Fork with a given pid for the child; raises ``ChildProcessError`` in the parent when it was taken (the child is gone then)."""
    next_pid(pid)
    child = os.fork()
    if child == 0:
        if os.getpid() != pid:
            os._exit(1)
        return 0
    if child != pid:
        os.waitpid(child, 0)
        raise ChildProcessError(f"pid {pid} was wanted, {child} came")
    return child


def stand_in(pid: int = 0) -> int:
    """Fork a process, with this pid if one is given, that leads a process group and does nothing else, whatever is sent to it.

    Returns its pid.  It holds no descriptor of ours.
    """
    child = fork_as(pid) if pid else os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            libc.set_name("mig-stand-in")
            libc.close_range(0)
            deaf()
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.setpgid(child, child)  # on both sides: whoever comes first, the group is there when we return
    return child


def deaf() -> None:
    """Ignore every signal that can be, but SIGCHLD: the guest may signal its whole group, or all processes."""
    for sig in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(sig, signal.SIG_IGN)


def hearing() -> None:
    """The opposite, before an exec: an ignored signal would stay ignored."""
    for sig in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(sig, signal.SIG_DFL)
