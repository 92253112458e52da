"""Every named fault point, on each side, for a first move, a later one and one home: nothing is lost, nothing runs twice.

The rules (docs/states.md): before the commit the process goes on where it was; after it the destination's word decides.  A keeper owns
its guest's pipes and files, so a guest ends with its keeper: that is told, and home's process ends as if it had been killed.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.cluster.conftest import LabUnderTest
from tests.cluster.helpers import own_server, servant

from .conftest import HOME, Faults, Job, Watch, events, nothing_left

LEGS = {"first": ("n1", "n2", "n2"), "later": ("n2", "n3", "n3"), "home": ("n2", "n1", "home")}
"""Source, destination, and what the destination is called for ``migrate``."""
SOURCE = ["before_freeze", "after_freeze", "after_dump", "mid_transfer", "before_commit"]
DESTINATION = ["before_prepare", "before_restore", "at_barrier"]


def arrange(job: Job, leg: str) -> tuple[str, str, str]:
    """Bring the job to where the leg starts."""
    source, destination, to = LEGS[leg]
    if source != HOME:
        job.move(source)
    return source, destination, to


def rolled_back(lab: LabUnderTest, job: Job, faults: Faults, node: str, point: str, action: str, leg: str) -> None:
    """Set the point, try the move: it ends with status 4, and the process goes on where it was as if nothing had been."""
    source, _, to = LEGS[leg]
    what = f"{point} {action} on {node}"
    faults.set(node, point, action)
    r = job.migrate(to)
    assert faults.hit(node, point), what
    assert r.returncode == 4 and f"still running on {source}" in r.stderr, (what, r.returncode, r.stderr)
    faults.clear(node, point)
    job.runs_once(source)
    if source == HOME:
        nothing_left(lab)
        assert "mig-" not in lab.path(HOME, f"/proc/{job.pid}/cgroup").read_text()


def moves_on(job: Job, leg: str) -> None:
    """After all that failed it moves as ever, and ends without a trace."""
    _, destination, to = LEGS[leg]
    job.move(to)
    job.runs_once(destination)
    job.end()


@pytest.mark.parametrize("leg", LEGS)
def test_failure_before_the_commit(lab: LabUnderTest, job: Job, faults: Faults, leg: str) -> None:
    source, destination, _ = arrange(job, leg)
    for point in SOURCE:
        rolled_back(lab, job, faults, source, point, "fail", leg)
    for point in DESTINATION:
        rolled_back(lab, job, faults, destination, point, "fail", leg)
    moves_on(job, leg)


@pytest.mark.parametrize("leg", LEGS)
def test_death_of_the_destination_before_the_commit(lab: LabUnderTest, job: Job, faults: Faults, leg: str) -> None:
    _, destination, _ = arrange(job, leg)
    for point in DESTINATION:
        rolled_back(lab, job, faults, destination, point, "die", leg)
    moves_on(job, leg)


def test_death_of_the_home_agent_in_a_first_move(lab: LabUnderTest, job: Job, faults: Faults) -> None:
    """omdiscd resolves what it left: the process goes on, and the tool waits for that."""
    for point in [*SOURCE, "after_commit"]:
        with Watch(job) as watch:
            rolled_back(lab, job, faults, HOME, point, "die", "first")
        print(f"{point}: stood still for {watch.longest:.2f} s")
        assert watch.longest < 15, point
    moves_on(job, "first")


HOLDER = """
import fcntl, os, select, sys, time
f = open(sys.argv[1], "w")
fcntl.flock(f, fcntl.LOCK_EX)
quiet = select.poll()
while True:
    began = time.monotonic()
    quiet.poll(700)
    print("early" if time.monotonic() - began < 0.69 else "late", file=f, flush=True)
"""


@pytest.mark.parametrize("point", ["mid_transfer", "before_commit"])
def test_what_a_dead_home_agent_had_taken(lab: LabUnderTest, faults: Faults, point: str) -> None:
    """Its cgroup, its lock, and the call in which it waited."""
    file = f"/tmp/lock-{os.getpid()}"
    pid = lab.spawn(HOME, ["python3", "-S", "-c", HOLDER, file])
    lab.wait_for(lambda: lab.path(HOME, file).exists() and "late" in lab.path(HOME, file).read_text(), what="it waits")
    group = "$(awk '$3 == \"cgroup2\" { print $2; exit }' /proc/mounts)/its-own"
    lab.run(HOME, f"mkdir {group}; echo {pid} > {group}/cgroup.procs", check=True)
    before = lab.path(HOME, f"/proc/{pid}/cgroup").read_text()
    assert "its-own" in before
    faults.set(HOME, point, "die")
    r = lab.run(HOME, ["migrate", str(pid), "n2"])
    assert faults.hit(HOME, point) and r.returncode == 4, r.stderr
    assert lab.path(HOME, f"/proc/{pid}/cgroup").read_text() == before
    assert lab.run(HOME, ["flock", "-n", file, "true"]).returncode == 1
    lines = len(lab.path(HOME, file).read_text().splitlines())
    lab.wait_for(lambda: len(lab.path(HOME, file).read_text().splitlines()) > lines + 1, what="it goes on")
    assert "early" not in lab.path(HOME, file).read_text()
    lab.signal(HOME, pid, 9)
    lab.wait_for(lambda: not lab.alive(HOME, pid), what="it ends")
    lab.run(HOME, f"rmdir {group}", check=True)
    nothing_left(lab)


@pytest.mark.parametrize("point", [*SOURCE, "after_commit"])
def test_death_of_the_keeper_that_sends(lab: LabUnderTest, job: Job, faults: Faults, point: str) -> None:
    """Its guest ends with it; home says so, and no copy comes to life at the destination."""
    arrange(job, "later")
    faults.set("n2", point, "die")
    r = job.migrate("n3")
    assert faults.hit("n2", point)
    assert r.returncode == 4 and "lost" in r.stderr and "still running" not in r.stderr, (r.returncode, r.stderr)
    is_lost(lab, job)


def is_lost(lab: LabUnderTest, job: Job) -> None:
    """The end of a guest whose host is gone."""
    job.until(job.gone, "home's process ends")
    assert len(events(lab, job, "lost")) == 1
    job.check_lines()
    nothing_left(lab)


@pytest.mark.parametrize("leg", LEGS)
def test_copy_that_never_ran(lab: LabUnderTest, job: Job, faults: Faults, leg: str) -> None:
    """Committed, and the destination says that its copy is gone: only this word lets the process go on at the source."""
    source, destination, _ = arrange(job, leg)
    rolled_back(lab, job, faults, source, "after_commit", "fail", leg)
    rolled_back(lab, job, faults, destination, "before_running", "fail", leg)
    rolled_back(lab, job, faults, destination, "before_running", "die", leg)
    moves_on(job, leg)


@pytest.mark.parametrize("leg", LEGS)
def test_answer_that_was_lost(lab: LabUnderTest, job: Job, faults: Faults, leg: str) -> None:
    """The copy runs and its keeper cannot say so: the source asks, and the move has arrived."""
    _, destination, to = arrange(job, leg)
    faults.set(destination, "after_go", "fail")
    r = job.migrate(to)
    assert faults.hit(destination, "after_go")
    assert r.returncode == 0, (r.returncode, r.stderr)
    faults.clear(destination, "after_go")
    job.runs_once(destination)
    job.end()


@pytest.mark.parametrize("leg", LEGS)
def test_death_of_the_destination_after_the_commit(lab: LabUnderTest, job: Job, faults: Faults, leg: str) -> None:
    """The copy ran there, so its death is the guest's: the source never starts it again."""
    _, destination, to = arrange(job, leg)
    faults.set(destination, "after_go", "die")
    r = job.migrate(to)
    assert faults.hit(destination, "after_go")
    assert "still running" not in r.stderr, (r.returncode, r.stderr)
    is_lost(lab, job)


def test_status_of_a_lost_guest(lab: LabUnderTest, job: Job, faults: Faults) -> None:
    """The shell that waits for it is told of a SIGKILL."""
    shell = lab.pty(HOME, ["bash", "--norc", "-i"])
    shell.sendline("sleep 1000 & echo pid=$!; wait $!; echo status=$?")
    shell.expect(r"pid=(\d+)\r\n")
    pid = int(shell.match[1])
    faults.set("n2", "after_go", "die")
    lab.run(HOME, ["migrate", str(pid), "n2"])
    shell.expect(r"status=(\d+)\r\n", timeout=20)
    assert int(shell.match[1]) == 128 + signal.SIGKILL
    nothing_left(lab)


OWN_SOCKET = own_server("""
while True:
    server.accept()[0].send(b"served")
""")


@pytest.mark.parametrize("leg", LEGS)
def test_a_socket_keeps_its_name_when_the_copy_is_given_up(lab: LabUnderTest, faults: Faults, leg: str) -> None:
    """The copy's restore took the name and bound it anew; the process that goes on must still be reached by it."""
    source, destination, to = LEGS[leg]
    with servant(lab, 1000) as s:
        s.do(OWN_SOCKET)
        s.ask("connected().recv(100)")
        if source != HOME:
            lab.run(HOME, ["migrate", "--own-sockets", str(s.pid), source], check=True)
        for node, action in [(destination, "fail"), (destination, "die"), *([(HOME, "die")] if source == HOME else [])]:
            point = "at_barrier" if node == destination else "before_commit"
            faults.set(node, point, action)
            r = lab.run(HOME, ["migrate", "--own-sockets", str(s.pid), to])
            assert faults.hit(node, point), (node, point, r.stderr)
            faults.clear(node, point)
            assert r.returncode == 4 and f"still running on {source}" in r.stderr, r.stderr
            assert s.ask("connected().recv(100)") == b"served", (node, action)
            assert s.ask("os.listdir(os.path.dirname(name))") == ["sock"]
        s.move(to)
        assert s.ask("connected().recv(100)") == b"served"
        assert s.ask("os.listdir(os.path.dirname(name))") == ["sock"]


@pytest.mark.parametrize("source", ["n2", "home"])
def test_input_after_a_move_that_failed(lab: LabUnderTest, faults: Faults, source: str) -> None:
    """All that is written into the guest's standard input reaches it, through a proxy or by the real descriptor."""
    node = HOME if source == "home" else source
    with servant(lab, 1000) as s:
        s.move("n2")
        if source == "home":
            s.move("home")
        for point in ("after_freeze", "after_dump", "before_commit"):
            faults.set(node, point, "fail")
            r = lab.run(HOME, ["migrate", str(s.pid), "n3"])
            assert faults.hit(node, point) and r.returncode == 4, r.stderr
            faults.clear(node, point)
            assert [s.ask(f"{n}") for n in range(20)] == list(range(20)), point
        s.move("n3")
        assert s.ask("1 + 1") == 2


LOCKS = """
f, g = open("/tmp/own-flock", "w"), open("/tmp/own-record", "w")
fcntl.flock(f, fcntl.LOCK_EX)
fcntl.lockf(g, fcntl.LOCK_EX)
"""
TRY = """
import fcntl, sys
for name, lock in (("flock", fcntl.flock), ("record", fcntl.lockf)):
    try:
        lock(open(f"/tmp/own-{name}", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(name)
"""


@pytest.mark.parametrize("leg", LEGS)
def test_locks_after_the_copy_was_given_up(lab: LabUnderTest, faults: Faults, leg: str) -> None:
    """The copy had taken them already; the process that goes on must have them again."""
    source, destination, to = LEGS[leg]
    with servant(lab, 1000) as s:
        s.do(LOCKS)
        if source != HOME:
            s.move(source)
        for node, point, action in [
            (source, "before_commit", "fail"),
            (destination, "at_barrier", "fail"),
            (destination, "at_barrier", "die"),
        ]:
            faults.set(node, point, action)
            r = lab.run(HOME, ["migrate", str(s.pid), to])
            assert faults.hit(node, point) and r.returncode == 4 and f"still running on {source}" in r.stderr, r.stderr
            faults.clear(node, point)
            assert lab.run(HOME, ["python3", "-c", TRY]).stdout.split() == ["flock", "record"], (node, point, action)
        s.move(to)
        assert lab.run(HOME, ["python3", "-c", TRY]).stdout.split() == ["flock", "record"]
        s.do("f.close(); g.close()")
        assert lab.run(HOME, ["python3", "-c", TRY]).stdout == ""
