"""``python -m omdiscd.nursery FD``: a process that has imported every helper, and forks one at a word of omdiscd's.

A message on the SEQPACKET socket FD asks for one helper; its descriptors come along: the log, which becomes standard output, then those
that it is to have, with the numbers that they are to have.  The answer is the pid with a pidfd; the helper runs only once that is sent, so
that no answer means no helper.  When one ends we say its status.  Helpers outlive us, and we end with omdiscd.

:class:`Nursery` is omdiscd's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import importlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mig import spawn
from mig.criu import agreed

log = logging.getLogger(__name__)

MODULES = (
    "mig.agent.main", "mig.agent.agent", "mig.agent.recover", "mig.agent.fileserver", "mig.cell.keeper", "mig.criu.dump_helper",
    "mig.deputy.convert_main", "mig.memory.inject", "mig.memory.pager_main", "mig.memory.source_main", "omdiscd.holder",
)  # fmt: skip
PATIENCE = 5.0
"""Seconds for an answer: a fork takes 2 ms, on a machine that may be busy."""
_PACKET, _FDS = 65536, 16
_IDLE = 19
"""Nice value for the importing, which nobody waits for."""
_ROOM = "-" * 240
"""An argument whose place the helpers' titles take."""


class Nursery:
    """omdiscd's side.  ``ended(pid, status)`` is called when a helper has ended, as long as the nursery lives."""

    def __init__(self, ended: Callable[[int, int], None]) -> None:
        self._ended = ended
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._ready = False

    def begin(self) -> None:
        """Start it, unless it runs; it is of use as soon as it has imported everything."""
        if self._sock is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "omdiscd.nursery", str(theirs.fileno()), _ROOM]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd="/", start_new_session=True)
        ours.settimeout(PATIENCE)
        self._sock = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)

    @property
    def pid(self) -> int:
        """Of the nursery, 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def fork(self, module: str, args: list[str], fds: tuple[int, ...], env: dict[str, str], out: int) -> tuple[int, int] | None:
        """A helper's pid and a pidfd of it; None when it must be started otherwise (then it does not run)."""
        if self._sock is None or not self._ready:
            self.begin()
            return None
        try:
            request = json.dumps({"module": module, "args": args, "fds": fds, "env": env}).encode()
            socket.send_fds(self._sock, [request], [out, *fds])
            while True:
                message, got = _recv(self._sock)
                if "pid" in message:
                    os.set_inheritable(got[0], False)
                    return int(message["pid"]), got[0]
                asyncio.get_running_loop().call_soon(self._take, message)
        except (OSError, EOFError) as e:
            log.warning("the nursery does not answer (%s): another is started", e or type(e).__name__)
            self.close()
            self.begin()
            return None

    def _hear(self) -> None:
        assert self._sock is not None
        try:
            self._take(_recv(self._sock)[0])
        except (OSError, EOFError):
            log.warning("the nursery has ended; the next helper starts another")
            self.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready = True
        else:
            self._ended(int(message["ended"]), int(message["status"]))

    def close(self) -> None:
        """End it; its helpers go on."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._sock = self._process = None
        self._ready = False


def _recv(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    packet, fds, _, _ = socket.recv_fds(sock, _PACKET, _FDS)
    if not packet:
        raise EOFError
    return json.loads(packet), fds


# -- the process itself -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve until omdiscd is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    spawn.set_title([sys.executable, "-m", "omdiscd.nursery"])
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, _IDLE)
    for module in MODULES:
        importlib.import_module(module)
    with contextlib.suppress(ImportError):  # no CRIU: the move will tell
        agreed.warm_up()
    try:
        os.setpriority(os.PRIO_PROCESS, 0, priority)
    except PermissionError:
        return  # without us helpers have their priority
    gc.collect()
    gc.freeze()  # pages that no collection writes to stay shared
    control.send(json.dumps({"ready": True}).encode())
    _serve(control)


def _serve(control: socket.socket) -> None:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    children: dict[int, int] = {}  # pid by pidfd
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                poll.unregister(fd)
                os.close(fd)
                pid, status = os.waitpid(children.pop(fd), 0)
                with contextlib.suppress(ConnectionError):
                    control.send(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}).encode())
                continue
            try:
                request, fds = _recv(control)
            except (OSError, EOFError):
                return
            pidfd, pid = _fork(control, request, fds)
            children[pidfd] = pid
            poll.register(pidfd, select.POLLIN)


def _fork(control: socket.socket, request: dict[str, Any], fds: list[int]) -> tuple[int, int]:
    ready, go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        os.close(go)
        if os.read(ready, 1) != b"g":
            os._exit(1)  # nobody knows of us
        _become(request, fds)
    pidfd = os.pidfd_open(pid)
    os.close(ready)
    with contextlib.suppress(ConnectionError):
        socket.send_fds(control, [json.dumps({"pid": pid}).encode()], [pidfd])
        os.write(go, b"g")
    for fd in (go, *fds):
        os.close(fd)
    return pidfd, pid


def _become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    try:
        os.setsid()
        os.chdir("/")
        os.environ.clear()
        os.environ.update(request["env"])
        wanted = [int(n) for n in request["fds"]]
        above = max([*wanted, *fds, 2]) + 1
        log_fd, *given = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]  # out of each other's way
        for number in (1, 2):
            os.dup2(log_fd, number)
        for fd, number in zip(given, wanted, strict=True):
            os.dup2(fd, number)
    except BaseException as e:
        os.write(2, f"a helper could not be started: {e!r}\n".encode())
        os._exit(1)
    spawn.run(request["module"], request["args"], request["fds"])


if __name__ == "__main__":
    main()
