"""What the tests of moves share: moving, a servant process to look out of, an interactive shell to type into."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import select
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
from omtools.moslab import enter

GUESTS = Path(__file__).parents[1] / "guests"
PYTHON = "/usr/bin/env python3 -S"
COUNT = f"{PYTHON} {GUESTS}/count.py"


def migrate(lab: Any, pid: int, to: str, *, node: str = "n1", timeout: float = 30, mode: str = "auto") -> dict[str, Any]:
    """Move it, which must succeed; the tool's JSON.  ``node`` is home."""
    r = lab.run(node, ["migrate", "--json", "--mode", mode, str(pid), to], timeout=timeout)
    assert r.returncode == 0, f"migrate {pid} {to}: {r.returncode}\n{r.stdout}{r.stderr}"
    result: dict[str, Any] = json.loads(r.stdout)
    assert result["to"] == (node if to == "home" else to), result
    return result


def where(lab: Any, pid: int, node: str = "n1") -> str:
    """The node on which it runs, by home's mosps; "" when mosps does not know it."""
    rows = json.loads(lab.run(node, ["mosps", "-a", "--json"], check=True).stdout)
    return next((str(r["where"]) for r in rows if r["pid"] == pid and r["home"] == node), "")


class Servant:
    """A process on n1 that evaluates lines of Python: what a guest sees and does.  Pipes connect it with the test."""

    def __init__(self, lab: Any, uid: int = 0, *, env: dict[str, str] | None = None, cwd: str = "/") -> None:
        self.lab = lab
        take, self._to = os.pipe()
        self._from, give = os.pipe()
        self._read = b""
        argv = ["python3", "-S", str(GUESTS / "servant.py")]
        env = {**enter.environment(), **(env or {})}
        try:
            self.running = enter.Running(lab.lab, lab.lab.node("n1"), argv, user=str(uid), stdio=[take, give, give], env=env, cwd=cwd)
        finally:
            os.close(take)
            os.close(give)
        self.pid = self.running.pid

    def ask(self, expression: str, timeout: float = 20) -> Any:
        """The value of an expression there."""
        self.begin(expression)
        return self.answer(timeout)

    def do(self, statements: str, timeout: float = 20) -> None:
        """Execute statements there."""
        os.write(self._to, json.dumps(["do", statements]).encode() + b"\n")
        self.answer(timeout)

    def begin(self, expression: str) -> None:
        """As ``ask``, without waiting for the answer."""
        os.write(self._to, json.dumps(["ask", expression]).encode() + b"\n")

    def answered(self) -> bool:
        """Whether the answer to ``begin`` has come."""
        return bool(select.select([self._from], [], [], 0)[0])

    def answer(self, timeout: float = 20) -> Any:
        """The answer to ``begin``; a failure there is one here."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._read:
            assert select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0], f"no answer; so far {self._read!r}"
            got = os.read(self._from, 1 << 16)
            assert got, f"the guest ended, its last words: {self._read.decode()}"
            self._read += got
        line, _, self._read = self._read.partition(b"\n")
        ok, value = json.loads(line)
        assert ok, value
        return None if value is None else ast.literal_eval(value)

    def move(self, to: str) -> dict[str, Any]:
        """Move it."""
        return migrate(self.lab, self.pid, to)

    def end(self) -> int:
        """No more input: it ends by itself; the status as in ``$?``."""
        if self._to >= 0:
            os.close(self._to)
            self._to = -1
        return enter.exit_status(self.running.wait())

    def wait(self) -> int:
        """Its end by other means; the status as in ``$?``."""
        return enter.exit_status(self.running.wait())

    def close(self) -> None:
        """End it if it runs, wait until no agent serves it any more."""
        if self.running.status is None:
            self.running.kill(signal.SIGKILL)
            self.running.wait()
        self.running.close()
        for fd in (self._to, self._from):
            if fd >= 0:
                os.close(fd)


def own_server(serve: str) -> str:
    """Statements that fork a child with a listening unix socket ``server``, which does ``serve``; ``name`` leads to it, ``connected()`` is
    a connection, ``say(c, data)`` sends by one and returns what comes."""
    return f"""
name = f"/tmp/own-{{os.getpid()}}/sock"
os.mkdir(os.path.dirname(name), 0o700)
r, w = os.pipe()
if not os.fork():
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    os.write(w, b"x")
{textwrap.indent(serve, "    ")}
os.read(r, 1)
def say(c, data):
    c.send(data)
    return c.recv(100)
def connected():
    c = socket.socket(socket.AF_UNIX)
    c.connect(name)
    return c
"""


@contextmanager
def servant(lab: Any, uid: int = 0, **kwargs: Any) -> Iterator[Servant]:
    """A servant for the time of a with block."""
    s = Servant(lab, uid, **kwargs)
    try:
        s.ask("0")
        yield s
    finally:
        s.close()


class Shell:
    """An interactive bash on a real terminal of n1."""

    PROMPT = "@@ "

    def __init__(self, lab: Any, uid: int = 0, **kwargs: Any) -> None:
        self.lab = lab
        kwargs = {"dimensions": (40, 250)} | kwargs  # wide: bash would wrap a long line
        self.c = lab.pty("n1", ["bash", "--norc", "--noprofile", "-i"], uid, **kwargs)
        self.seen = io.StringIO()
        self.c.logfile_read = self.seen
        self.c.sendline(f"bind 'set enable-bracketed-paste off'; PS1='{self.PROMPT}'; cd /tmp")
        self.c.expect_exact(f"cd /tmp\r\n{self.PROMPT}")

    def type(self, line: str) -> None:
        """A command line; consumes its echo."""
        self.c.sendline(line)
        self.c.expect_exact(f"{line}\r\n")

    def expect(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """Wait for output; the match."""
        self.c.expect(pattern, timeout=timeout)
        match = self.c.match
        assert isinstance(match, re.Match)
        return match

    def prompt(self, timeout: float = 20) -> str:
        """Wait for the prompt; what came before it."""
        self.c.expect_exact(self.PROMPT, timeout=timeout)
        return str(self.c.before)

    def run(self, line: str, timeout: float = 20) -> str:
        """A command to its end; its output."""
        self.type(line)
        return self.prompt(timeout)

    def start(self, line: str, pattern: str = r"^pid (\d+)\r\n") -> int:
        """A command that tells its pid."""
        self.type(line)
        return int(self.expect(pattern)[1])

    def status(self) -> int:
        """``$?``."""
        return int(self.run("echo $?"))


def numbers(text: str, separator: str = "\n") -> int:
    """How many numbers, which must be 0, 1, 2 … each on its line and nothing else."""
    got = text.split(separator)
    assert got[-1] == "", f"the last line is not whole: {got[-3:]}"
    wrong = [(i, x) for i, x in enumerate(got[:-1]) if x != str(i)]
    assert not wrong, f"{len(wrong)} wrong lines, first (index, text): {wrong[:5]}"
    return len(got) - 1


def file_text(lab: Any, path: str, node: str = "n1") -> str:
    """Content of a file of the node; "" when there is none."""
    try:
        return str(lab.path(node, path).read_text())
    except FileNotFoundError:
        return ""


def wait_text(lab: Any, path: str, *, when: Callable[[str], bool] = bool, timeout: float = 20) -> str:
    """Wait until a file of n1 has such content."""
    return str(lab.wait_for(lambda: (t := file_text(lab, path)) and when(t) and t, timeout, f"content of {path}"))


def screen_of(session: Any, columns: int, lines: int) -> Callable[[str], None]:
    """A terminal for a full-screen program; returns what waits until a text is on it."""
    screen = pyte.Screen(columns, lines)
    stream = pyte.Stream(screen)

    def until(text: str) -> None:
        end = time.monotonic() + 30
        while not any(text in line for line in screen.display):
            assert time.monotonic() < end, "\n".join([f"never seen: {text}", *screen.display])
            stream.feed(session.read_nonblocking(65536, timeout=30))

    return until
