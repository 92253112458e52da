"""Helper processes: each is a module of ours with a ``main()``, run as ``python -m MODULE ARGUMENT …`` or forked from who has it imported.

An interpreter that starts and imports takes 50 to 200 ms of a CPU, a fork 2 ms; a first move has ten helpers.  So omdiscd keeps a process
that has imported everything (:mod:`omdiscd.nursery`); what is forked from it, agents and keepers, forks its own helpers in turn
(:data:`prepared`).  Anybody else, and omdiscd when that process is not there, executes the interpreter; the helper cannot tell.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable
from typing import NoReturn, Protocol

from mig.kernel import libc

prepared = False
"""Whether this process was forked from one that has imported everything: then it may fork its helpers."""

_ARG_START, _ARG_END = 48, 49  # fields of /proc/PID/stat; see proc_pid_stat(5)


class Process(Protocol):
    """A child of ours; what :class:`subprocess.Popen` offers of this.  ``returncode``: None until it was waited for."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(module: str, *args: str, fds: Iterable[int] = (), own_group: bool = False) -> Process:
    """Start a helper as our child, with standard input from /dev/null, our output, and only these descriptors, under the same numbers.

    ``own_group``: in a process group of its own.
    """
    fds = tuple(fds)
    if not prepared:
        command = [sys.executable, "-m", module, *args]
        return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, process_group=0 if own_group else None)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child has it once more
    pid = os.fork()
    if not pid:
        if own_group:
            os.setpgid(0, 0)
        run(module, args, fds)
    return Forked(pid)


class Forked:
    """A child that was forked: :class:`Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its status if it has ended, as in ``Popen``."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """As in ``Popen``; raises ``TimeoutExpired``."""
        if timeout is not None and self.returncode is None:
            fd = os.pidfd_open(self.pid)  # ours, not reaped: it exists
            try:
                if not select.select([fd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
            finally:
                os.close(fd)
        status = self._reap(0)
        assert status is not None
        return status

    def terminate(self) -> None:
        """SIGTERM, if it has not been waited for."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, if it has not been waited for."""
        self._signal(signal.SIGKILL)

    def _signal(self, sig: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


async def ended(pid: int) -> None:
    """Wait, without a thread, until a child has ended; it stays to be reaped."""
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(pid)
    try:
        gone = asyncio.Event()
        loop.add_reader(fd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)


def run(module: str, args: Iterable[str], keep: Iterable[int]) -> NoReturn:
    """In a child just forked: become the helper.  Of the parent's descriptors ``keep`` and the standard ones stay."""
    global prepared
    code = 1
    try:
        prepared = True
        gc.freeze()  # nothing of the parent's is finalized here: the descriptors in it are not ours
        keep = set(keep)
        _forget_parent()
        _close_but(keep)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        for fd in keep:
            os.set_inheritable(fd, True)  # as an exec would have it
        sys.argv = [module, *args]
        set_title([sys.executable, "-m", module, *args])
        code = importlib.import_module(module).main() or 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        if isinstance(e.code, str):
            sys.stderr.write(f"{e.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _forget_parent() -> None:
    """Its signal handlers, event loop and log; what it ignored stays ignored, as in a program that is executed."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    asyncio.events._set_running_loop(None)
    asyncio.set_event_loop_policy(None)
    logging.root.handlers.clear()


def _close_but(keep: set[int]) -> None:
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        if fd > low:
            libc.close_range(low, fd - 1)
        low = fd + 1
    libc.close_range(low)


def set_title(argv: list[str]) -> None:
    """What ``ps`` shows of this process: written over the arguments that it, or who forked it, was executed with; cut at their length."""
    with open("/proc/self/stat", encoding="utf-8", errors="surrogateescape") as f:
        fields = f.read().rpartition(")")[2].split()  # from the third on
    begin, end = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
    size = end - begin
    if size > 0:
        ctypes.memmove(begin, b"\0".join(map(os.fsencode, argv))[: size - 1].ljust(size, b"\0"), size)
