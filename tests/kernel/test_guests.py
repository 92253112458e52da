"""The guests that tests move about do what they say when nobody moves them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.build import Guests, build


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return build(tmp_path_factory.mktemp("guests"))


class Run:
    """A guest with pipes; every line's number is checked."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines = 0

    def line(self) -> str:
        assert self.process.stdout is not None
        number, text = self.process.stdout.readline().rstrip("\n").split(" ", 1)
        assert int(number) == self.lines
        self.lines += 1
        return text

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.line()

    def eof(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def run() -> Iterator[type[Run]]:
    started: list[Run] = []

    class Started(Run):
        def __init__(self, *command: object) -> None:
            super().__init__(*command)
            started.append(self)

    yield Started
    for r in started:
        r.process.kill()
        for stream in (r.process.stdin, r.process.stdout):
            assert stream is not None
            stream.close()
        r.process.wait()


def test_verify_answers_its_commands(guests: Guests, run: type[Run], tmp_path: Path) -> None:
    g = run(guests.verify, "-m", 2, "-t", 3, "-f", tmp_path / "seq", "-p", 200)
    assert g.line() == f"ready pid={g.process.pid}"
    assert g.ask("ids").startswith(f"ids pid={g.process.pid} ppid={os.getpid()} ")
    assert g.ask("echo hello  world") == "hello  world"
    assert g.ask("all") == "all pages=512 wrong=0"
    assert g.ask("clock").startswith("clock monotonic=")
    assert "threads=3" in g.ask("count")
    (tmp_path / "text").write_text("first\nsecond\n")
    assert g.ask(f"cat {tmp_path}/text") == "cat first"
    assert g.ask(f"cat {tmp_path}/none") == "cat failed: No such file or directory"
    assert g.ask(f"make {tmp_path}/made some text") == f"made {tmp_path}/made"
    assert (tmp_path / "made").read_text() == "some text"
    assert g.ask(f"cd {tmp_path}") == "cd done"
    assert g.ask("env NONE") == "env -"
    assert g.ask("files").startswith(f"file {tmp_path}/seq lines=")
    assert g.line().startswith(f"file {tmp_path}/seq.offset lines=")
    assert g.ask("quit 37") == "bye"
    assert g.process.wait() == 37


def test_verify_measures_its_longest_gap(guests: Guests, run: type[Run]) -> None:
    g = run(guests.verify, "-t", 0, "-p", 500)
    g.line()
    g.ask("gap")
    g.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, g.process.pid, os.WSTOPPED)
    time.sleep(0.2)
    g.process.send_signal(signal.SIGCONT)
    words = g.ask("gap").split()
    assert float(words[1]) >= 200
    g.eof()
    assert g.line() == "eof"
    assert g.process.wait() == 7


def test_verify_in_the_background_ends_by_itself(guests: Guests, run: type[Run]) -> None:
    g = run(guests.verify, "-b", "-s", 0.2, "-o", 20, "-p", 200)
    g.eof()
    assert g.line().startswith("ready")
    for i in range(5):
        assert g.line() == f"tick {i}"
    assert g.process.wait() == 0


def test_verify_notices_a_changed_file(guests: Guests, run: type[Run], tmp_path: Path) -> None:
    g = run(guests.verify, "-f", tmp_path / "seq", "-p", 200)
    g.line()
    while not (tmp_path / "seq").stat().st_size:
        g.ask("echo")
    with open(tmp_path / "seq", "r+b") as f:
        f.write(b"0000000007")
    assert g.ask("files").startswith("ERROR")
    assert g.process.wait() == 3


def test_tree_hands_messages_round(guests: Guests, run: type[Run]) -> None:
    g = run(guests.tree)
    assert g.line() == f"ready pid={g.process.pid}"
    children = g.ask("ids").split("children=")[1].split(",")
    assert len(children) == 3
    while int(g.ask("count").split()[1]) < 20:
        pass
    assert g.ask("quit 5") == "bye"
    assert g.process.wait() == 5
    assert not any(os.path.exists(f"/proc/{c}") for c in children)


def test_tree_notices_a_dead_child(guests: Guests, run: type[Run]) -> None:
    g = run(guests.tree)
    g.line()
    os.kill(int(g.ask("ids").split("children=")[1].split(",")[1]), signal.SIGKILL)
    assert g.line().startswith("ERROR")
    assert g.process.wait() == 3


def test_files_verifies_all_its_files(guests: Guests, run: type[Run], tmp_path: Path) -> None:
    g = run(sys.executable, guests.files, tmp_path / "d", "flock", "posix")
    assert g.line().startswith("ready")
    for i in range(1, 6):
        assert g.ask("state") == f"state {i} fine"
    assert g.ask("import colorsys") == "imported colorsys"
    with open(tmp_path / "d/shared", "r+b") as f:
        f.write(b"changed!")
    assert g.ask("state").startswith("ERROR shared mapping")
    assert g.process.wait() == 3


def test_holder_holds(guests: Guests, run: type[Run]) -> None:
    g = run(guests.holder, "device", "tcp-listen", "tcp-pair", "udp")
    assert g.line().startswith("ready")
    links = [os.readlink(f"/proc/{g.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{g.process.pid}/fd")]
    assert "/dev/fuse" in links
    assert sum(link.startswith("socket:") for link in links) == 4
