"""Begin to track the writes of running processes: ``python -m mig.memory.inject FD``, and who asks it (:func:`track`).

A process makes a userfaultfd for us, which is taken out of it and closed in it, and its areas are registered while it stands still: for a
millisecond or two.  In that time the registers of one of its threads are ours, so the one who changes them is a process of its own
that does nothing else: whoever asked may be killed at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mig import spawn, wire
from mig.kernel import libc, procfs
from mig.kernel.ptrace import Tracee, TraceeDied
from mig.memory.ranges import Missing, join
from mig.memory.written import FLAGS, enable, register

PATIENCE = 0.1
"""Seconds for all threads to come to a stop, in which those that did already wait.  One in vfork() or on a dead disk does not."""
TRIES = 5
BETWEEN = 0.2
AGAIN = 75
ANSWER = 10.0
"""Seconds that the injector may take for one process."""

Ranges = list[tuple[int, int]]


class InjectError(OSError):
    """The injector failed; the processes run on as before."""


def track(wanted: dict[int, Ranges]) -> dict[int, tuple[int, Ranges] | str]:
    """For each process an enabled userfaultfd and what is registered with it, or why it cannot be tracked.

    ``wanted``: by pid, what may be tracked; an area that touches it is registered as a whole, as it is by then.  Blocking: some
    milliseconds, 0.1 s where the injector is executed.  Raises :class:`InjectError`.
    """
    ours, theirs = socket.socketpair()
    out: dict[int, tuple[int, Ranges] | str] = {}
    with ours:
        with theirs:
            # not to be ended by what ends us: a group of its own, and no PDEATHSIG
            p = spawn.start("mig.memory.inject", str(theirs.fileno()), fds=[theirs.fileno()], own_group=True)
        try:
            ours.settimeout(ANSWER)
            wire.send(ours, processes=[{"pid": pid, "ranges": ranges} for pid, ranges in wanted.items()])
            for pid in wanted:
                answer = wire.recv(ours)
                if "error" in answer:
                    out[pid] = str(answer["error"])
                    continue
                _, fds, _, _ = socket.recv_fds(ours, 1, 1)
                os.set_inheritable(fds[0], False)
                out[pid] = fds[0], [(a, b) for a, b in answer["ranges"]]
        except (OSError, EOFError, LookupError, ValueError) as e:
            for got in out.values():
                if not isinstance(got, str):
                    os.close(got[0])
            raise InjectError(errno.EIO, f"the injector failed: {e}") from e
        finally:
            ours.close()
            p.wait()  # it ends by itself, in bounded time: ending it could end a process that it holds
    return out


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it does not come to a stop")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop_all(pid: int, threads: dict[int, Tracee], patience: float = PATIENCE) -> None:
    """Bring every thread to a stop, those born meanwhile too.  Raises ``TimeoutError``, ``OSError``."""
    over: set[int] = set()
    with _patience(patience):
        # until a list shows nobody new: who ended since the list before may have started another at its end
        while new := [t for t in procfs.threads(pid) if t not in threads and t not in over]:
            for tid in new:
                try:
                    if _over(pid, tid):  # a leader may have ended by itself
                        over.add(tid)
                        continue
                    threads[tid] = Tracee(tid)
                    threads[tid].stop()
                except (ProcessLookupError, TraceeDied):
                    threads.pop(tid, None)  # it ended
                    over.add(tid)


def _over(pid: int, tid: int) -> bool:
    try:
        return procfs.stat(pid, tid).state in ("Z", "X")
    except ProcessLookupError:
        return True


def begin(pid: int, wanted: Ranges) -> tuple[int, Ranges]:
    """An enabled userfaultfd of ``pid``'s and what is registered with it.

    Raises ``OSError``: ``InjectedError`` with the errno of the call, ``TimeoutError``, ``EPERM`` for one that is traced already.
    """
    threads: dict[int, Tracee] = {}
    try:
        _stop_all(pid, threads)
        if not threads:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
        fd = _make(pid, next(iter(threads.values())))
        try:
            enable(fd)
            return fd, register(fd, _areas(pid, wanted))
        except OSError:
            os.close(fd)
            raise
    finally:
        for t in threads.values():
            try:
                t.detach()
            except ProcessLookupError:
                pass  # not in a stop yet (our patience has ended), or killed


def _make(pid: int, t: Tracee) -> int:
    t.begin()
    inner = -1
    try:
        inner = t.syscall("userfaultfd", FLAGS)
        return libc.pidfd_getfd(pid, inner)
    finally:
        if inner >= 0:
            t.syscall("close", inner)
        t.undo()


def _areas(pid: int, wanted: Ranges) -> Ranges:
    """Whole areas of private anonymous memory that touch what is wanted."""
    out = []
    known = Missing(join(wanted))
    for m in procfs.maps(pid):
        if not m.ino and m.perms[3] == "p" and m.path not in ("[stack]", "[vdso]", "[vvar]") and known.within(m.start, m.end):
            out.append((m.start, m.end))
    return out


def _hurry() -> None:
    """A process stands still for as long as we take: on a busy machine that is mostly the wait for a CPU."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:  # a container without a share of real time
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def _try(control: socket.socket, pid: int, ranges: Ranges) -> int:
    _hurry()
    try:
        fd, registered = begin(pid, ranges)
    except TimeoutError:
        return AGAIN
    except OSError as e:
        wire.send(control, error=str(e))
        return 0
    try:
        wire.send(control, ranges=registered)
        socket.send_fds(control, [b"f"], [fd])
    finally:
        os.close(fd)
    return 0


def _answer(control: socket.socket, pid: int, ranges: Ranges) -> None:
    """Each try is a process: only the end of a tracer lets go of a thread that has not come to its stop."""
    for left in reversed(range(TRIES)):
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _try(control, pid, ranges)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != AGAIN:
            if code:
                wire.send(control, error=f"an injector ended with status {code}")
            return
        if left:
            time.sleep(BETWEEN)
    wire.send(control, error="a thread of it does not come to a stop")


def main() -> None:
    """Serve one request."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it takes milliseconds, and must not end in the middle
    try:
        for p in wire.recv(control)["processes"]:
            _answer(control, p["pid"], [(a, b) for a, b in p["ranges"]])
    except (EOFError, ConnectionError):
        pass  # whoever asked has gone


if __name__ == "__main__":
    main()
