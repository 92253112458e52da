"""Pipes and redirections of a job that moves: as the shell made them, to the last byte."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from .helpers import GUESTS, PYTHON, migrate, wait_text

pytestmark = pytest.mark.usefixtures("fresh")
DOUBLE = f"{PYTHON} {GUESTS}/double.py"


@pytest.fixture
def fresh(lab: Any) -> None:
    """No files of the tests before."""
    lab.run("n1", "rm -rf /tmp/pid /tmp/go /tmp/turns /tmp/enough /tmp/d; install -d -m 777 /tmp/d /tmp/turns", check=True)


def pid_of(lab: Any, path: str) -> int:
    """The pid that a job told in a file."""
    return int(wait_text(lab, path, when=lambda t: t.startswith("pid ") and "\n" in t).split()[1])


def finished(lab: Any, pid: int, timeout: float = 60) -> str:
    """Output of a spawned shell that has ended."""
    lab.wait_for(lambda: not lab.alive("n1", pid), timeout, "the shell ends")
    return str(lab.output("n1", pid))


def test_in_the_middle_of_a_pipeline(lab: Any) -> None:
    count = 60000
    shell = lab.spawn("n1", f"seq 0 {count - 1} | {DOUBLE} 0.00002 2>/tmp/pid | md5sum; echo ${{PIPESTATUS[*]}}")
    pid = pid_of(lab, "/tmp/pid")
    for to in ("n2", "n3", "home"):
        migrate(lab, pid, to)
    expected = hashlib.md5("".join(f"{2 * i}\n" for i in range(count)).encode()).hexdigest()
    assert finished(lab, shell) == f"{expected}  -\n0 0 0\n"


def test_redirections(lab: Any) -> None:
    lab.run("n1", "cd /tmp/d; seq 0 4999 > in; echo before > err; chmod 666 in err", check=True)
    shell = lab.spawn("n1", f"cd /tmp/d; {DOUBLE} 0.001 < in > out 2>> err; echo $?", 1000)
    pid = int(wait_text(lab, "/tmp/d/err", when=lambda t: "pid" in t and t.endswith("\n")).split()[2])
    migrate(lab, pid, "n2")
    migrate(lab, pid, "n3")
    assert finished(lab, shell) == "0\n"
    assert lab.path("n1", "/tmp/d/out").read_text() == "".join(f"{2 * i}\n" for i in range(5000))
    assert lab.path("n1", "/tmp/d/err").read_text() == f"before\npid {pid}\n"
    assert lab.run("n1", "stat -c %u /tmp/d/out").stdout == "1000\n"


@pytest.mark.parametrize("to", ["n2", "home"])
def test_a_reader_that_goes_away(lab: Any, to: str) -> None:
    guest = "echo pid $$ >&2; while :; do echo line; sleep 0.01; done"
    reader = "while [ ! -e /tmp/enough ]; do read -r line; done; echo $line"
    shell = lab.spawn("n1", f"bash -c '{guest}' 2>/tmp/pid | {{ {reader}; }}; echo ${{PIPESTATUS[*]}}")
    pid = pid_of(lab, "/tmp/pid")
    migrate(lab, pid, "n2")
    if to == "home":
        migrate(lab, pid, to)
    lab.run("n1", "touch /tmp/enough", check=True)
    assert finished(lab, shell) == "line\n141 0\n"


def test_head(lab: Any) -> None:
    guest = "echo pid $$ >&2; while [ ! -e /tmp/go ]; do sleep 0.05; done; exec yes"
    shell = lab.spawn("n1", f"bash -c '{guest}' 2>/tmp/pid | head -1; echo ${{PIPESTATUS[*]}}")
    migrate(lab, pid_of(lab, "/tmp/pid"), "n2")
    lab.run("n1", "touch /tmp/go", check=True)
    assert finished(lab, shell) == "y\n141 0\n"


def test_a_guest_that_stops_reading_ends_its_writer(lab: Any) -> None:
    guest = "echo pid $$ >&2; for i in $(seq 300); do read l; sleep 0.01; done; echo $l"
    shell = lab.spawn("n1", f"yes | bash -c '{guest}' 2>/tmp/pid; echo ${{PIPESTATUS[*]}}")
    pid = pid_of(lab, "/tmp/pid")
    migrate(lab, pid, "n2")
    migrate(lab, pid, "n3")
    assert finished(lab, shell) == "y\n141 0\n"


def test_a_guest_that_closes_its_output(lab: Any) -> None:
    guest = "echo pid $$ >&2; echo said; while [ ! -e /tmp/go ]; do sleep 0.05; done; exec >&-; sleep 1000"
    shell = lab.spawn("n1", f"bash -c '{guest}' 2>/tmp/pid | (cat; echo eof; kill $(cut -d' ' -f2 /tmp/pid)); echo ${{PIPESTATUS[*]}}")
    migrate(lab, pid_of(lab, "/tmp/pid"), "n2")
    lab.run("n1", "touch /tmp/go", check=True)
    out = finished(lab, shell)
    assert out.startswith("said\neof\n") and out.endswith("143 0\n")


def test_a_slow_reader_holds_the_guest_back(lab: Any) -> None:
    guest = "echo pid $$ >&2; seq 1 200000"
    reader = "while [ ! -e /tmp/go ]; do sleep 0.05; done; md5sum"
    shell = lab.spawn("n1", f"bash -c '{guest}; exit 9' 2>/tmp/pid | {{ {reader}; }}; echo ${{PIPESTATUS[*]}}")
    pid = pid_of(lab, "/tmp/pid")
    for to in ("n2", "home", "n3"):
        migrate(lab, pid, to)
    lab.run("n1", "touch /tmp/go", check=True)
    expected = hashlib.md5("".join(f"{i}\n" for i in range(1, 200001)).encode()).hexdigest()
    assert finished(lab, shell) == f"{expected}  -\n9 0\n"


@pytest.mark.parametrize("loop", ["while read l; do {job}; done < /tmp/list", "cat /tmp/list | while read l; do {job}; done"])
def test_jobs_in_a_loop_do_not_eat_its_list(lab: Any, loop: str) -> None:
    lab.run("n1", "printf 'a\\nb\\nc\\nd\\n' > /tmp/list", check=True)
    job = f"{PYTHON} {GUESTS}/turn.py /tmp/turns $l"
    shell = lab.spawn("n1", loop.format(job=job) + "; echo end")
    for name in "abcd":
        pid = int(wait_text(lab, f"/tmp/turns/pid.{name}"))
        if name in "bd":
            migrate(lab, pid, "n2")
        lab.run("n1", f"touch /tmp/turns/go.{name}", check=True)
    assert finished(lab, shell) == "turn a\nturn b\nturn c\nturn d\nend\n"


def test_output_shared_with_the_shell(lab: Any) -> None:
    job = f"{PYTHON} {GUESTS}/turn.py /tmp/turns"
    shell = lab.spawn("n1", f"{{ echo start; {job} a; echo middle; {job} b; echo end; }} > /tmp/out; cat /tmp/out")
    for name in "ab":
        migrate(lab, int(wait_text(lab, f"/tmp/turns/pid.{name}")), "n2")
        lab.run("n1", f"touch /tmp/turns/go.{name}", check=True)
    assert finished(lab, shell) == "start\nturn a\nmiddle\nturn b\nend\n"


def test_a_reader_of_a_file_shared_with_the_shell(lab: Any) -> None:
    """``{ head; tail; } < file``: what the guest has read the shell does not read again."""
    lab.run("n1", "seq 1 100 > /tmp/in", check=True)
    guest = "echo pid $$ > /tmp/pid; while [ ! -e /tmp/go ]; do sleep 0.05; done; for i in 1 2 3; do read x; echo $x; done"
    shell = lab.spawn("n1", f"{{ bash -c '{guest}'; head -c 4; }} < /tmp/in; echo status $?")
    migrate(lab, pid_of(lab, "/tmp/pid"), "n2")
    lab.run("n1", "touch /tmp/go", check=True)
    assert finished(lab, shell) == "1\n2\n3\n4\n5\nstatus 0\n"
