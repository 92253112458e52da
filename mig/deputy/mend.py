"""Calls that a CRIU dump interrupts, and how they go on all the same.

A thread that is stopped in ``nanosleep``, ``poll`` or a timed ``futex`` wait would go on by ``restart_syscall``, whose state lies in the
kernel.  CRIU cannot keep that state and lets the call return EINTR, at home (where the dump was only a try) and in the image.  So we note
before the dump which thread waits in which call, and afterwards have it make the call once more.

What is exact: sleeps whose remaining time the kernel wrote to the caller's memory (``rem``), waits without a timeout, waits until a point
in time.  A sleep or poll with a relative timeout and no ``rem`` starts its timeout anew: later than it would have been, but not broken.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mig.kernel import procfs
from mig.kernel.ptrace import NO_SYSCALL, U64, Tracee

STARTS = (56, 58, 435)
"""clone, vfork, clone3: whoever stands frozen in one of them waits for its child."""
NR_POLL, NR_NANOSLEEP, NR_FUTEX, NR_CLOCK_NANOSLEEP = 7, 35, 202, 230
TIMER_ABSTIME = 1
FUTEX_WAIT = 0
FUTEX_CMD_MASK = 0x7F  # without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
EINTR = -errno.EINTR & U64


@dataclass(frozen=True)
class Call:
    """A thread in a call that CRIU would interrupt; ``pid`` and ``tid`` as we see them, ``args`` as in its registers rdi … r9."""

    pid: int
    tid: int
    nr: int
    args: tuple[int, ...]


def interrupted(threads: Iterable[tuple[int, int]]) -> list[Call]:
    """Which of these (pid, tid) wait in such a call.  To be asked while they are frozen, before the dump."""
    out = []
    for pid, tid in threads:
        try:
            call = procfs.syscall(pid, tid)
        except ProcessLookupError:
            continue  # ended before the freeze
        if call is not None and _is_broken_by_criu(call.nr, call.args):
            out.append(Call(pid, tid, call.nr, call.args))
    return out


def in_vfork(threads: Iterable[tuple[int, int]]) -> int:
    """The process of a thread that waits for the exec or end of the child that it made by vfork, 0: none.  While they are frozen."""
    for pid, tid in threads:
        with contextlib.suppress(ProcessLookupError):
            call = procfs.syscall(pid, tid)
            if call is not None and call.nr in STARTS:
                return pid
    return 0


def _is_broken_by_criu(nr: int, args: tuple[int, ...]) -> bool:
    if nr == NR_CLOCK_NANOSLEEP:
        return not args[1] & TIMER_ABSTIME  # an absolute one is restarted like a read
    if nr == NR_FUTEX:
        # only with a timeout; FUTEX_WAIT's is relative and leaves no remainder: EINTR, which its callers must expect, is the better answer
        return args[3] != 0 and args[1] & FUTEX_CMD_MASK != FUTEX_WAIT
    return nr in (NR_POLL, NR_NANOSLEEP)


def again(call: Call, ax: int, ip: int) -> dict[str, int] | None:
    """The registers to change (CRIU's names: ax, orig_ax, ip, di, dx) so that the thread makes its call again, with the remaining time.

    None when it does not stand behind this call's EINTR, so that nothing may be changed.
    """
    if ax & U64 != EINTR:
        return None
    regs = {"ax": call.nr, "orig_ax": NO_SYSCALL, "ip": ip - 2}  # back onto the two bytes of `syscall`
    if call.nr == NR_NANOSLEEP and call.args[1]:
        regs["di"] = call.args[1]
    elif call.nr == NR_CLOCK_NANOSLEEP and call.args[3]:
        regs["dx"] = call.args[3]
    return regs


def mend_running(calls: Iterable[Call], thaw: Callable[[], None]) -> None:
    """Thaw processes that were dumped and stay here, so that these calls go on.

    ``thaw`` is called in any case, once all of the threads that need mending are caught; a thread that has ended is left out.
    """
    caught: list[tuple[Call, Tracee]] = []
    try:
        for call in calls:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                tracee = Tracee(call.tid, suspend_seccomp=False)
                tracee.stop()  # frozen threads enter this stop without being thawed
                caught.append((call, tracee))
        for call, tracee in caught:
            with contextlib.suppress(ProcessLookupError):
                _mend(call, tracee)
    finally:
        for _, tracee in caught:
            with contextlib.suppress(ProcessLookupError):
                tracee.detach()
        thaw()


def _mend(call: Call, tracee: Tracee) -> None:
    regs = tracee.getregs()
    changes = again(call, regs.rax, regs.rip)
    if changes is not None:
        for name, value in changes.items():
            setattr(regs, name if name == "orig_ax" else "r" + name, value & U64)
        tracee.setregs(regs)
