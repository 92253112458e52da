"""Processes in a node, started by asking its pid 1 (see :mod:`omtools.moslab.init`): run, spawn, the daemon."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from mig.errors import BadInput, MigError

from . import init
from .lab import Lab, Node

_NOT_PASSED = ("MIG_RUN", "MIG_CONFIG", "MIG_KEY")
"""Places in the machine's tree; a node has its own."""


class CannotStart(MigError):
    """The command itself is the trouble; ``exit_status`` is what a shell would give: 127 not found, 126 not executable."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def environment() -> dict[str, str]:
    """The caller's environment for a command in a node, the tools first on PATH."""
    env = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED}
    tools = os.path.join(sys.prefix, "bin")
    rest = [d for d in env.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":") if d != tools]
    return {**env, "PATH": ":".join([tools, *rest])}


def directory() -> str:
    """The caller's working directory; / when it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _connect(lab: Lab, node: Node) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        s.connect(str(lab.socket(node)))
    except (ConnectionRefusedError, FileNotFoundError):
        s.close()
        raise BadInput(f"{node.name} of lab {lab.name} is off", hint=f"moslab --lab {lab.name} start {node.name}") from None
    return s


def _reply(conn: socket.socket, node: Node) -> tuple[dict[str, Any], list[int]]:
    try:
        answer, fds = init.receive(conn)
    except (EOFError, ConnectionError):
        raise MigError(f"{node.name} went down") from None
    if "error" in answer:
        if answer["code"] == 2:
            raise BadInput(f"{node.name}: {answer['error']}")
        raise CannotStart(f"{node.name}: {answer['error']}", answer["code"])
    return answer, fds


def _ask(lab: Lab, node: Node, **request: Any) -> dict[str, Any]:
    with _connect(lab, node) as conn:
        init.send(conn, **request)
        return _reply(conn, node)[0]


class Running:
    """A command in a node whose caller waits: ``pid`` as seen in the node, ``master`` the terminal's other end or -1.

    Closing it before its end is a hangup: the command's process group gets SIGHUP.
    """

    def __init__(
        self,
        lab: Lab,
        node: Node,
        argv: Sequence[str],
        *,
        user: str = "0",
        stdio: Sequence[int] = (0, 1, 2),
        terminal: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        """Start it.  ``stdio``: descriptors of ours, passed as they are; ``terminal``: which of 0-2 shall be a terminal of the node
        instead (``tty``), its ``winsize`` and ``termios``.  Raises :class:`BadInput` (node off, no such user) or :class:`CannotStart`."""
        self.node = node
        self.status: int | None = None
        terminal = terminal or {"tty": []}
        plain = [fd for i, fd in enumerate(stdio) if i not in terminal["tty"]]
        umask = os.umask(0o022)
        os.umask(umask)
        self.conn = _connect(lab, node)
        try:
            init.send(
                self.conn,
                plain,
                op="run",
                argv=list(argv),
                user=user,
                env=environment() if env is None else env,
                cwd=[cwd or directory()],
                umask=umask,
                **terminal,
            )
            answer, fds = _reply(self.conn, node)
        except BaseException:
            self.conn.close()
            raise
        self.pid = int(answer["pid"])
        self.master = fds[0] if fds else -1

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send a signal to it, or to its process group; no error when it has ended."""
        try:
            self.conn.send(bytes([number + (init.TO_GROUP if group else 0)]))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it ended, or its node did: wait() tells

    def wait(self) -> int:
        """Its wait status; raises :class:`MigError` when the node goes down."""
        if self.status is None:
            self.status = int(_reply(self.conn, self.node)[0]["status"])
        return self.status

    def close(self) -> None:
        """Let go of it."""
        self.conn.close()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


def exit_status(wait_status: int) -> int:
    """As in ``$?``: the exit status, or 128 + signal."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def spawn(lab: Lab, node: Node, argv: Sequence[str], *, user: str = "0", cwd: str | None = None) -> int:
    """Start a command that nobody waits for: own session, no input, output to ``init.STATE/out/PID`` in the node; returns its pid
    there.  Raises as :class:`Running`."""
    return int(_ask(lab, node, op="spawn", argv=list(argv), user=user, env=environment(), cwd=[cwd or directory()])["pid"])


def start_daemon(lab: Lab, node: Node) -> int:
    """Start the node's omdiscd (one that runs is ended first); returns its pid in the node."""
    argv = [os.path.join(sys.prefix, "bin", "omdiscd"), "-n"]
    return int(_ask(lab, node, op="daemon", argv=argv, env=environment(), cwd=["/"])["pid"])


def daemon_pid(lab: Lab, node: Node) -> int:
    """The pid of the node's omdiscd there, 0 when it does not run."""
    return int(_ask(lab, node, op="info")["daemon"])
