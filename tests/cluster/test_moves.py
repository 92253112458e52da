"""Moving again and again, and with daemons that die: programs that verify themselves find no fault."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from omtools.moslab import enter

from tests.guests import build

from .helpers import migrate, where

DIRECTORY = "/opt/guests"


class Told:
    """A guest of tests/guests: commands on its stdin, numbered lines on its stdout, of which none may be missing or doubled."""

    def __init__(self, lab: Any, argv: Sequence[str], uid: int = 0, *, start: float = 20) -> None:
        take, self._to = os.pipe()
        self._from, give = os.pipe()
        os.set_blocking(self._from, False)
        try:
            self.running = enter.Running(lab.lab, lab.lab.node("n1"), argv, user=str(uid), stdio=[take, give, give], cwd="/")
        finally:
            os.close(take)
            os.close(give)
        self.pid, self.lines, self._rest = self.running.pid, 0, b""
        self._unread: list[str] = []
        self.wait_for("ready", start)

    def new(self) -> list[str]:
        """Lines since the last call, checked, without their numbers."""
        got, self._unread = self._unread, []
        while select.select([self._from], [], [], 0)[0] and (data := os.read(self._from, 1 << 16)):
            self._rest += data
        *whole, self._rest = self._rest.split(b"\n")
        for line in whole:
            number, _, text = line.decode().partition(" ")
            assert number == f"{self.lines:08d}", f"line {self.lines} is {line!r}"
            assert not text.startswith("ERROR"), text
            self.lines += 1
            got.append(text)
        return got

    def wait_for(self, start: str, timeout: float = 20) -> str:
        """The next line that begins so."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            texts = self.new()
            for i, text in enumerate(texts):
                if text.startswith(start):
                    self._unread = texts[i + 1 :]
                    return text
            select.select([self._from], [], [], 0.5)
        raise AssertionError(f"the guest does not say {start!r}")

    def ask(self, command: str, answer: str, timeout: float = 20) -> str:
        """Give a command; the line that begins with ``answer``."""
        os.write(self._to, command.encode() + b"\n")
        return self.wait_for(answer, timeout)

    def end(self, status: int) -> None:
        """Have it end with a status."""
        os.write(self._to, f"quit {status}\n".encode())
        assert enter.exit_status(self.running.wait()) == status
        assert self.new()[-1:] == ["bye"], "its last word has come"

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.running.status is None:
            self.running.kill(signal.SIGKILL)
            self.running.wait()
        self.running.close()
        os.close(self._to)
        os.close(self._from)


Start = Callable[..., Told]


@pytest.fixture
def start(lab: Any) -> Iterator[Start]:
    """Start a guest program of home's: ``start("verify", "-m", "8", uid=1000)``."""
    directory: Path = lab.path("n1", DIRECTORY)
    if not directory.exists():
        directory.mkdir(mode=0o755)
        build.build(directory)  # on n1 alone: everything that a guest reads of it elsewhere comes from home
    lab.run("n1", "rm -rf /var/tmp/g; install -d -m 777 /var/tmp/g", check=True)
    running: list[Told] = []

    def make(name: str, *args: str, uid: int = 0) -> Told:
        argv = ["python3", "-S", f"{DIRECTORY}/{name}"] if name.endswith(".py") else [f"{DIRECTORY}/{name}"]
        running.append(Told(lab, [*argv, *args], uid))
        return running[-1]

    yield make
    for t in running:
        t.close()


def verify(t: Told) -> None:
    """Everything that it can check is as it should be."""
    assert t.ask("all", "all").endswith("wrong=0")
    os.write(t._to, b"files\n")
    for name in ("seq", "seq.offset"):
        assert t.wait_for("file").startswith(f"file /var/tmp/g/{name} ")
    assert float(t.ask("clock", "clock").split("skew=")[1]) < 0.5


@pytest.mark.timeout(400)
def test_a_hundred_moves(lab: Any, start: Start, record_property: Callable[[str, object], None]) -> None:
    t = start("verify", "-m", "4", "-t", "3", "-f", "/var/tmp/g/seq", "-o", "20", "-p", "2000")
    ids = t.ask("ids", "ids")
    pauses, totals = [], []
    for i, to in enumerate(itertools.islice(itertools.cycle(["n2", "n3", "home"]), 100), 1):
        result = migrate(lab, t.pid, to)
        pauses.append(result["pause_ms"])
        totals.append(result["total_ms"])
        t.new()
        if i % 10 == 0:
            verify(t)
            assert t.ask("ids", "ids") == ids
    assert where(lab, t.pid) == "n2"
    t.wait_for("tick")
    verify(t)
    t.end(37)
    pause, longest, total = statistics.median(pauses), max(pauses), statistics.median(totals)
    told = f"100 moves: pause median {pause:.0f} ms, longest {longest:.0f}; in all median {total:.0f} ms"
    print(told)
    record_property("moves", told)


@pytest.mark.parametrize(
    ("name", "args", "command", "answer"),
    [
        ("verify", ["-m", "64", "-w", "8", "-t", "16", "-f", "/var/tmp/g/seq"], "count", "count"),
        ("tree", [], "count", "count"),
        ("files.py", ["/var/tmp/g/files", "flock", "posix"], "state", "state"),
    ],
    ids=["memory and threads", "tree", "files"],
)
@pytest.mark.parametrize("uid", [0, 1000])
def test_programs_that_verify_themselves(lab: Any, start: Start, uid: int, name: str, args: list[str], command: str, answer: str) -> None:
    t = start(name, *args, uid=uid)
    t.ask(command, answer)
    for to in ("n2", "n3", "home", "n3"):
        migrate(lab, t.pid, to)
        t.ask(command, answer)
        if name == "verify":
            verify(t)
    t.end(9)


def test_daemons_may_die(lab: Any, start: Start) -> None:
    t = start("verify", "-m", "4", "-f", "/var/tmp/g/seq", "-o", "20", "-p", "1000")
    migrate(lab, t.pid, "n2")
    for node in ("n1", "n2"):
        lab.run(node, f"kill -9 {lab.daemon_pid(node)}", check=True)
        lab.wait_for(lambda n=node: not lab.daemon_pid(n), what="the daemon is dead")
        t.wait_for("tick")
    verify(t)
    for node in ("n1", "n2"):
        lab.restart_daemon(node)
        t.wait_for("tick")
    lab.wait_for(lambda: where(lab, t.pid) == "n2", what="mosps at home shows the guest")

    def hosted() -> bool:
        rows = json.loads(lab.run("n2", ["mosps", "-a", "--json"], check=True).stdout)
        return any(r["pid"] == t.pid and r["home"] == "n1" for r in rows)

    lab.wait_for(hosted, what="mosps at the host shows the guest")
    for to in ("n3", "home", "n2"):
        migrate(lab, t.pid, to)
        verify(t)
    lab.run("n1", f"kill -9 {lab.daemon_pid('n1')}", check=True)
    t.end(21)
    lab.restart_daemon("n1")
    lab.wait_for(lambda: where(lab, t.pid) == "", what="a guest that ended meanwhile is not shown")


def test_the_clock_page_of_a_guest_stays_there_when_it_comes_home(lab: Any) -> None:
    """A thread may stand frozen inside the vdso of a time namespace; without one at home it ended by SIGBUS, about once in 45 moves."""
    pid = lab.spawn("n1", ["python3", "-c", "import time\nwhile True: time.monotonic()"])
    for to in ("n2", "home"):
        migrate(lab, pid, to)
    ours = lab.run("n1", "readlink /proc/self/ns/time", check=True).stdout
    guest = lab.run("n1", f"grep -lE '^NSpid:.*[[:space:]]{pid}$' /proc/[0-9]*/status | grep -v '^/proc/{pid}/'", check=True).stdout.split()
    assert len(guest) == 1, guest
    its = lab.run("n1", f"readlink {guest[0].removesuffix('status')}ns/time", check=True).stdout
    assert its.startswith("time:") and its != ours
