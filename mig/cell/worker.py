"""Starting a CRIU worker with a given pid, parent and process group, which :meth:`mig.criu.session.Worker.start` leaves to chance."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterable
from typing import Any, cast

from mig.cell.processes import hearing, next_pid
from mig.criu import layout
from mig.criu.session import Worker

CLONE_PARENT = 0x8000
_NR_CLONE = 56  # x86-64
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 6
_libc.syscall.restype = ctypes.c_long


class Launch:
    """All that a worker needs but its process.

    The process that makes this object keeps it until the worker is done: CRIU asks the socket who made it, and looks up the
    descriptors of requests in that process.
    """

    def __init__(self, criu_dir: str, pid: int, group: int) -> None:
        self.pid = pid
        self.group = group
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stderr_fd = os.memfd_create("criu-stderr")
        self.null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.argv = [*layout.command(criu_dir), "swrk", str(self.theirs.fileno())]

    def fork(self, *, sibling: bool, stdin: int, pass_fds: Iterable[int]) -> None:
        """Fork and exec the worker: as our child, or as our ``sibling``, a child of our parent's in our session."""
        next_pid(self.pid)
        # fork(2) has no flags; none of what Python does after a fork matters to a child that only execs
        pid = _libc.syscall(_NR_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) if sibling else os.fork()
        if pid == 0:
            try:
                self._exec(stdin, pass_fds)
            finally:
                os._exit(127)
        if pid != self.pid:
            raise ChildProcessError(f"pid {self.pid} was wanted for CRIU, {pid} came")

    def _exec(self, stdin: int, pass_fds: Iterable[int]) -> None:
        if self.group:
            os.setpgid(0, self.group)
        hearing()
        os.setgroups([])  # CRIU sets no groups for a process that had none, which would keep root's
        for target, fd in enumerate((self.null_fd if stdin < 0 else stdin, self.null_fd, self.stderr_fd)):
            os.dup2(fd, target)
        for fd in (self.theirs.fileno(), *pass_fds):
            os.set_inheritable(fd, True)
        os.execve(self.argv[0], self.argv, {**os.environ, **layout.NO_BREAKPOINTS})

    def drop(self) -> None:
        """Let go of a copy of this object that is another process's business."""
        self.ours.close()
        self.theirs.close()
        os.close(self.stderr_fd)
        os.close(self.null_fd)

    def worker(self) -> Worker:
        """The worker, once it answers: exec and linking are over.  To be called by the worker's parent, which made this object.

        Raises :class:`~mig.criu.log.CriuError` when it does not answer.
        """
        self.theirs.close()
        os.close(self.null_fd)
        # Worker asks of its process no more than this class has
        worker = Worker(cast("subprocess.Popen[bytes]", _Process(self.pid)), self.ours, self.stderr_fd)
        rpc: Any = layout.rpc()
        try:
            worker.call(rpc.criu_req(type=rpc.VERSION, keep_open=True))
        except BaseException:
            worker.close()
            raise
        return worker


class _Process:
    """A child that was not made by ``subprocess``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """As ``Popen.wait``."""
        if self.returncode is None and timeout is not None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("criu", timeout)
            finally:
                os.close(pidfd)
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """As ``Popen.kill``."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
