"""A CRIU worker: one process, started and linked before it is needed, told by RPC what to do."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Self

from mig.criu import layout, log

Notify = Callable[[str, int], bool | None]
"""Called with the name of a notification and a pid; False tells CRIU to fail (which it ignores at ``pre-resume``)."""

_MAX_PACKET = 1 << 16


class Worker:
    """One ``criu swrk``.  It ends by itself after one dump or restore, or when :meth:`close` drops its socket.

    CRIU opens the directories of a request through ``/proc/<pid>/fd`` of the process that *started* the worker (it asks the socket for
    its peer), so descriptors in requests are those of that process, which must stay until the request is done.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, stderr_fd: int) -> None:
        self._process = process
        self._sock = sock
        self._stderr_fd = stderr_fd
        self.major = 0
        """The first number of its version."""

    @classmethod
    def start(
        cls,
        *,
        base: str | None = None,
        shim: bool = False,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
    ) -> Self:
        """Start a worker and wait until it answers, so that neither exec nor linking happens while somebody is frozen.

        ``pass_fds`` stay open in it under their numbers (``inherit_fd`` names them so).  ``stdin`` matters for a restore with a
        controlling terminal: CRIU takes the terminal from there.  Raises :class:`~mig.criu.log.CriuError` when it does not start.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # what CRIU or the loader says before a request names the log file; nobody reads it unless the worker dies
        stderr_fd = os.memfd_create("criu-stderr")
        try:
            with theirs:
                process = subprocess.Popen(
                    [*layout.command(base, shim=shim), "swrk", str(theirs.fileno())],
                    pass_fds=[theirs.fileno(), *pass_fds],
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr_fd,
                    env={**os.environ, **layout.NO_BREAKPOINTS, **(env or {})},
                )
        except OSError as e:
            ours.close()
            os.close(stderr_fd)
            raise log.CriuError(f"CRIU does not start: {e}", hint="run `make env`") from e
        worker = cls(process, ours, stderr_fd)
        rpc = layout.rpc()
        try:
            worker.major = int(worker.call(rpc.criu_req(type=rpc.VERSION, keep_open=True)).version.major_number)
        except BaseException:
            worker.close()
            raise
        return worker

    @property
    def pid(self) -> int:
        """The worker's pid, in the caller's pid namespace."""
        return self._process.pid

    def call(self, req: Any, notify: Notify | None = None) -> Any:
        """Send one ``criu_req``, answer notifications through ``notify``, return the final ``criu_resp``; blocking.

        Raises :class:`~mig.criu.log.CriuError` with CRIU's own words when it reports a failure or dies.
        """
        rpc = layout.rpc()
        try:
            self._sock.send(req.SerializeToString())
            while True:
                packet = self._sock.recv(_MAX_PACKET)
                if not packet:
                    raise ConnectionResetError
                resp = rpc.criu_resp()
                resp.ParseFromString(packet)
                if resp.type != rpc.NOTIFY:
                    break
                ok = notify(resp.notify.script, resp.notify.pid) if notify else True
                self._sock.send(rpc.criu_req(type=rpc.NOTIFY, notify_success=ok is not False).SerializeToString())
        except (BrokenPipeError, ConnectionResetError) as e:
            raise self._failure(rpc, req, f"died ({_how(self._process.wait())})") from e
        if not resp.success:
            raise self._failure(rpc, req, resp.cr_errmsg or (os.strerror(resp.cr_errno) if resp.cr_errno else "failed"))
        return resp

    def close(self, timeout: float = 5.0) -> int:
        """Let the worker go and reap it; its exit status (negative: the signal that ended it).  Idempotent."""
        if self._sock.fileno() >= 0:
            self._sock.close()
            os.close(self._stderr_fd)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _failure(self, rpc: Any, req: Any, what: str) -> log.CriuError:
        text = _read_log(req.opts) if req.HasField("opts") else ""
        first = log.first_error(text)
        if not first:
            os.lseek(self._stderr_fd, 0, os.SEEK_SET)
            said = os.read(self._stderr_fd, 4096).decode(errors="replace").strip()
            first = log.first_error(said) or (said.splitlines() or [""])[-1]
        verb = {rpc.DUMP: "dump the process", rpc.RESTORE: "restore the process"}.get(req.type, "answer")
        return log.CriuError(f"CRIU could not {verb}: {first or what}", first_error=first)


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _read_log(opts: Any) -> str:
    fd = opts.work_dir_fd if opts.HasField("work_dir_fd") else opts.images_dir_fd
    try:
        with open(f"/proc/self/fd/{fd}/{opts.log_file}", errors="replace") as f:
            return f.read()
    except (FileNotFoundError, NotADirectoryError):  # it failed before it opened its log
        return ""
