"""Have running processes make a userfaultfd each, for us: ``python -m mig.memory.inject FD``, and who asks it (:func:`userfaultfds`).

A process stands still for about a millisecond meanwhile (one thread of it; the others run on), and is afterwards as it was: the descriptor
has been taken out and closed in it.  In that millisecond its registers are ours, so the one who changes them is a process of its own that
does nothing else: whoever asked may be killed at any time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mig.kernel import libc, procfs
from mig.kernel.ptrace import Tracee
from mig.memory.written import FLAGS

PATIENCE = 2.0
"""Seconds to bring a thread to a stop: one that waits for a disk or in vfork() cannot be, and then nothing was changed."""
MAX_PACKET = 65536
MAX_PROCESSES = 200


class InjectError(OSError):
    """The process could not be made to open a userfaultfd; it runs on as before."""


def userfaultfds(pids: list[int]) -> dict[int, int | str]:
    """For each process a descriptor of a userfaultfd of its address space, or why there is none.  Blocking; 0.1 s, mostly Python's start.

    Raises :class:`InjectError` when the injector itself fails.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    out: dict[int, int | str] = {}
    with ours:
        with theirs:
            # not to be ended by what ends us: a group of its own, and no PDEATHSIG
            p = subprocess.Popen(
                [sys.executable, "-m", "mig.memory.inject", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip
        try:
            ours.settimeout(10 + PATIENCE * len(pids))
            ours.send(json.dumps(pids[:MAX_PROCESSES]).encode())
            for _ in pids[:MAX_PROCESSES]:
                packet, fds, _, _ = socket.recv_fds(ours, MAX_PACKET, 1)
                if not packet:
                    raise InjectError(5, "the injector ended without an answer")
                answer = json.loads(packet)
                for fd in fds:
                    os.set_inheritable(fd, False)
                out[int(answer["pid"])] = fds[0] if fds else str(answer["error"])
        except (OSError, ValueError) as e:
            for got in out.values():
                if isinstance(got, int):
                    os.close(got)
            raise e if isinstance(e, InjectError) else InjectError(5, f"the injector failed: {e}") from e
        finally:
            ours.close()
            p.wait()  # it ends by itself, within its patience: ending it could end a process that it holds
    return out


@contextmanager
def _patience() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it does not come to a stop")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def open_in(pid: int) -> int:
    """Our descriptor of a userfaultfd of ``pid``'s.  Raises ``OSError`` (``InjectedError`` with the call's own errno, ``TimeoutError``)."""
    tid = next((t for t in procfs.threads(pid) if procfs.stat(pid, t).state not in ("Z", "X")), pid)  # a leader may have ended by itself
    t = Tracee(tid)
    try:
        with _patience():
            t.stop()
        t.begin()
        fd = -1
        try:
            fd = t.syscall("userfaultfd", FLAGS)
            return libc.pidfd_getfd(pid, fd)
        finally:
            if fd >= 0:
                t.syscall("close", fd)
            t.undo()
    finally:
        t.detach()


def main() -> None:
    """Serve one request."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it takes milliseconds, and must not end in the middle
    packet = control.recv(MAX_PACKET)
    for pid in json.loads(packet) if packet else []:
        try:
            fd = open_in(pid)
        except OSError as e:
            control.send(json.dumps({"pid": pid, "error": str(e)}).encode())
            continue
        try:
            socket.send_fds(control, [json.dumps({"pid": pid}).encode()], [fd])
        finally:
            os.close(fd)


if __name__ == "__main__":
    main()
