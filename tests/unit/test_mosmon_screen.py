"""mosmon in a real terminal: curses on a pty, read by a terminal emulator, with a pool that a ZeroMQ socket plays."""

from __future__ import annotations

import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import msgpack
import pyte
import pytest
import zmq

from tests.unit.test_mosmon_model import guest, node


class Daemon:
    """A control socket whose answers a test sets; keeps the orders."""

    def __init__(self, run: Path) -> None:
        self.path = run / "control.sock"
        self.nodes: list[dict[str, Any]] = [node("n1")]
        self.guests: list[dict[str, Any]] = []
        self.orders: list[dict[str, Any]] = []
        self._context = zmq.Context()
        self.start()

    def start(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def close(self) -> None:
        self.stop()
        self._context.term()

    def _serve(self) -> None:
        s = self._context.socket(zmq.ROUTER)
        s.setsockopt(zmq.LINGER, 0)
        s.bind(f"ipc://{self.path}")
        while not self._end.is_set():
            if s.poll(20):
                identity, frame = s.recv_multipart()
                q = msgpack.unpackb(frame)
                for answer in self._answers(q):
                    s.send_multipart([identity, msgpack.packb({"v": 1, "id": q["id"], "ok": True, "more": False} | answer)])
        s.close()

    def _answers(self, q: dict[str, Any]) -> list[dict[str, Any]]:
        match q["op"]:
            case "status":
                return [{"nodes": self.nodes, "self": "n1"}]
            case "guests":
                return [{"guests": self.guests}]
            case "events":
                return [{"events": []}]
            case "migrate" if q["to"] == "mars":
                return [{"ok": False, "error": {"code": "bad-input", "message": "no node mars is known here", "reasons": [], "hint": ""}}]
            case "migrate":
                self.orders.append(q)
                return [{"more": True, "text": "freeze"}, {"result": {"pause_ms": 41.0}}]
        self.orders.append(q)
        return [{}]


class Terminal:
    """mosmon under a pty of this size."""

    def __init__(self, run: Path, width: int = 80, height: int = 24, *args: str, **env: str) -> None:
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                base = {"PATH": os.environ["PATH"], "TERM": "screen-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "MIG_RUN": str(run)}
                os.execve(sys.executable, [sys.executable, "-m", "omtools.mosmon", *args], base | env)
            finally:
                os._exit(127)
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))
        self.screen.resize(height, width)

    def read(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self.fd], [], [], left)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return
            self.raw += data
            self._stream.feed(data)

    def until(self, seen: Callable[[str], bool], what: str) -> str:
        """Until the screen shows it."""
        end = time.monotonic() + 20
        while not seen(self.text):
            assert time.monotonic() < end, f"never on the screen: {what}\n{self.text}"
            self.read(0.1)
        return self.text

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        """Quit by q; the exit status."""
        self.type("\x1bq" if "filter:" in self.text else "q")
        status = None
        end = time.monotonic() + 20
        while status is None and time.monotonic() < end:
            self.read(0.05)
            pid, s = os.waitpid(self.pid, os.WNOHANG)
            status = s if pid else None
        self.pid = 0 if status is not None else self.pid
        assert status is not None, f"it does not end\n{self.text}"
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    d = Daemon(tmp_path)
    yield d
    d.close()


@pytest.fixture
def mosmon(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: Any, **env: str) -> Terminal:
        opened.append(Terminal(tmp_path, *args, **env))
        return opened[-1]

    yield start
    for t in opened:
        t.close()


Start = Callable[..., Terminal]


def test_a_pool_of_three(daemon: Daemon, mosmon: Start) -> None:
    daemon.nodes = [node("n1", load=1.0), node("n2"), node("n3", accepting=False)]
    t = mosmon()
    t.until(lambda s: "3 of 3 nodes up" in s and "█" in s, "three bars")
    assert b"\x1b[32m" in t.raw or b"\x1b[1m" in t.raw  # in colour
    t.type("?")
    t.until(lambda s: "openMosix" in s or "any key goes back" in s, "the help")
    t.type(" m")
    t.until(lambda s: "used, + free" in s and "++" in s, "memory")
    assert t.end() == 0


def test_four_hundred_nodes_and_a_window_that_changes_its_size(daemon: Daemon, mosmon: Start) -> None:
    daemon.nodes = [node(f"n{i}", load=i / 400) for i in range(1, 401)]
    t = mosmon(250, 70)
    t.until(lambda s: "of 400:" in s, "a part of the nodes")
    t.resize(80, 24)
    t.until(lambda s: "nodes 1-" in s.splitlines()[1] and "400 nodes up  ? help" in s.splitlines()[0], "the same in 80 columns")
    t.resize(20, 5)
    t.read(0.5)
    t.resize(250, 70)
    t.until(lambda s: len(s.splitlines()[0]) > 200 and "of 400:" in s, "the old size")
    assert t.end() == 0


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "LANG": "C"}, {"TERM": "vt100", "NO_COLOR": "1"}, {"TERM": "linux"}])
def test_poor_terminals(daemon: Daemon, mosmon: Start, env: dict[str, str]) -> None:
    t = mosmon(80, 24, **env)
    t.until(lambda s: "#" in s and "1 of 1 nodes up" in s, "a bar of #")
    assert "█" not in t.text and "─" not in t.text
    assert t.end() == 0


def test_without_colour(daemon: Daemon, mosmon: Start) -> None:
    t = mosmon(80, 24, NO_COLOR="1")
    t.until(lambda s: "█" in s, "a bar")
    assert b"\x1b[32m" not in t.raw
    assert t.end() == 0


def test_moving_a_process_and_a_refusal(daemon: Daemon, mosmon: Start) -> None:
    daemon.guests = [guest(4711, comm="povray")]
    t = mosmon(100, 24, "--view", "processes")
    t.until(lambda s: "povray" in s, "the process")
    t.type("\rn2\r")
    t.until(lambda s: "povray (4711): moved to n2, paused 41 ms" in s, "the result")
    assert [(o["op"], o["pid"], o["to"]) for o in daemon.orders] == [("migrate", 4711, "n2")]
    t.type("Mmars\r")
    t.until(lambda s: "no node mars is known here" in s, "the error")
    t.type("K")
    t.until(lambda s: "is locked" in s, "the lock")
    t.type("/nothing\r")
    t.until(lambda s: "no row matches" in s, "an empty table")
    assert t.end() == 0


def test_a_daemon_that_goes_and_comes_back(daemon: Daemon, mosmon: Start) -> None:
    t = mosmon()
    t.until(lambda s: "1 of 1 nodes up" in s, "the node")
    daemon.stop()
    t.until(lambda s: "trying again" in s, "that it is gone")
    daemon.start()
    t.until(lambda s: "trying again" not in s, "that it is back")
    assert t.end() == 0


def test_without_a_daemon_it_waits(tmp_path: Path, mosmon: Start) -> None:
    t = mosmon()
    t.until(lambda s: "omdiscd is not running" in s, "why nothing is seen")
    assert t.end() == 0


def test_ctrl_c_leaves_the_terminal_as_it_was(daemon: Daemon, mosmon: Start) -> None:
    t = mosmon()
    before = termios.tcgetattr(t.fd)
    t.until(lambda s: "█" in s, "a bar")
    t.type("\x03")
    end = time.monotonic() + 20
    while not (done := os.waitpid(t.pid, os.WNOHANG))[0] and time.monotonic() < end:
        t.read(0.05)
    t.pid = 0
    assert os.waitstatus_to_exitcode(done[1]) == 130
    assert termios.tcgetattr(t.fd)[3] == before[3]


def test_no_terminal(tmp_path: Path) -> None:
    import subprocess

    r = subprocess.run([sys.executable, "-m", "omtools.mosmon"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert r.returncode == 2 and "needs a terminal" in r.stderr


def test_an_unknown_terminal(tmp_path: Path, mosmon: Start) -> None:
    t = mosmon(80, 24, TERM="nonsense")
    t.until(lambda s: "'nonsense' is not known" in s, "the error")
    assert os.waitstatus_to_exitcode(os.waitpid(t.pid, 0)[1]) == 2
    t.pid = 0
