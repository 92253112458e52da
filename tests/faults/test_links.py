"""Links that break and nodes that die, at every stage of a move and afterwards.

Several processes are stopped at their fault points, each at another one, and share one breakdown: what a silent link needs is time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import pytest
from omtools.moslab import enter

from tests.cluster.conftest import LabUnderTest
from tests.guests.build import Guests

from .conftest import HOME, Background, Faults, Job, Watch, events, nothing_left

STAGES = {"before_running": "destination", "after_commit": "source", "at_barrier": "destination", "mid_transfer": "source",
          "before_freeze": "source"}  # fmt: skip
"""Where a move is stopped, and on which side; the last first, so that each process passes the points of those before it."""
UNCOMMITTED = ("at_barrier", "mid_transfer", "before_freeze")
GIVEN_UP = 20.0
"""Seconds for which a process may stand still because of a silent link: 10 of silence, and what a busy machine needs besides."""


class Breakdown:
    """Moves that stand at all the stages at once."""

    def __init__(self, faults: Faults, start: Callable[..., Job], source: str, destination: str) -> None:
        self.faults, self.source, self.destination = faults, source, destination
        self.jobs = {stage: start() for stage in STAGES}
        self.moves: dict[str, Background] = {}
        self.watches = {stage: Watch(job) for stage, job in self.jobs.items()}
        if source != HOME:
            for job in self.jobs.values():
                job.move(source)
        for stage, job in self.jobs.items():
            faults.set(self.node(stage), stage, "hang")
            self.watches[stage].__enter__()
            self.moves[stage] = Background(job, destination)
            faults.wait(self.node(stage), stage)

    def node(self, stage: str) -> str:
        """On which the stage's point is."""
        return self.source if STAGES[stage] == "source" else self.destination

    def release(self, *nodes: str) -> None:
        """All go on, except on nodes that are off."""
        for stage in STAGES:
            if self.node(stage) in nodes:
                self.faults.clear(self.node(stage), stage)

    def never_twice(self) -> None:
        """No process makes progress in two places."""
        before = {stage: job.running(0) for stage, job in self.jobs.items()}
        for stage, job in self.jobs.items():
            now = job.running()
            if len(now) > 1:  # a frozen copy that something woke for an instant has a switch too; one that runs goes on to
                now = job.running()
            assert len(now) <= 1, f"{stage}: {before[stage]} {now} {job.describe()}"

    def given_up(self) -> None:
        """What was not committed goes on at the source, soon."""
        for stage in UNCOMMITTED:
            r = self.moves[stage].wait(GIVEN_UP + 10)
            assert r.returncode == 4 and f"still running on {self.source}" in r.stderr, (stage, r.returncode, r.stderr)
            self.watches[stage].__exit__()
            print(f"{stage}: migrate gave up after {self.moves[stage].took:.1f} s; frozen for {self.watches[stage].longest:.1f} s")
            assert self.watches[stage].longest < GIVEN_UP, stage
            self.jobs[stage].runs_once(self.source)

    def close(self) -> None:
        """End what looks on."""
        for w in self.watches.values():
            w.__exit__()


@pytest.fixture
def breakdown(faults: Faults, start: Callable[..., Job]) -> Iterator[Callable[[str, str], Breakdown]]:
    """Make one; it is closed after the test."""
    made = []

    def make(source: str, destination: str) -> Breakdown:
        made.append(Breakdown(faults, start, source, destination))
        return made[-1]

    yield make
    for b in made:
        b.close()


@pytest.mark.parametrize(("source", "destination"), [("n1", "n2"), ("n2", "n3")])
def test_cut_from_the_destination(lab: LabUnderTest, breakdown: Callable[..., Breakdown], source: str, destination: str) -> None:
    b = breakdown(source, destination)
    lab.cut(destination)
    b.release(source, destination)
    b.never_twice()
    b.given_up()
    b.never_twice()
    # the others are committed: their callers are told that nobody knows, and nothing runs at the source meanwhile
    for stage in ("after_commit", "before_running"):
        r = b.moves[stage].wait(60)
        assert r.returncode == 5 and destination in r.stderr, (stage, r.returncode, r.stderr)
        assert source not in b.jobs[stage].running()
    lab.heal(destination)
    b.jobs["after_commit"].runs_once(source)  # GO never came: the destination gave its copy up
    b.jobs["before_running"].runs_once(destination)  # GO had come: it runs there
    b.never_twice()
    b.close()
    for stage in ("after_commit", "before_running"):
        print(f"{stage}: frozen for {b.watches[stage].longest:.1f} s, until the link was whole again")
    for job in b.jobs.values():
        job.move("n3" if destination == "n2" else "n1")
    job.end(*b.jobs.values())


def test_cut_from_the_source_of_a_later_move(lab: LabUnderTest, breakdown: Callable[..., Breakdown]) -> None:
    """Host and guest are cut off from home and destination alike; when the link is back, each guest runs in one place."""
    b = breakdown("n2", "n3")
    lab.cut("n2")
    b.release("n2", "n3")
    for _ in range(3):
        b.never_twice()
        time.sleep(3)
    lab.heal("n2")
    for stage, job in b.jobs.items():
        r = b.moves[stage].wait()
        where = {0: "n3", 4: "n2"}[r.returncode] if r.returncode in (0, 4) else ""
        assert where, (stage, r.returncode, r.stderr)
        assert (r.returncode == 0) if stage == "before_running" else True, (stage, r.stderr)
        job.runs_once(where)
    b.close()
    job.end(*b.jobs.values())


def test_cut_from_home_in_a_later_move(lab: LabUnderTest, job: Job, faults: Faults) -> None:
    """Source and destination go on without home, whose agent learns of it when the link is whole again."""
    job.move("n2")
    faults.set("n3", "at_barrier", "hang")
    move = Background(job, "n3")
    faults.wait("n3", "at_barrier")
    lab.cut(HOME)
    faults.clear("n3", "at_barrier")
    job.until(lambda: list(job.copies().values()) == ["n3"], "it arrives")
    time.sleep(3)
    lab.heal(HOME)
    r = move.wait()
    assert r.returncode == 0, (r.returncode, r.stderr)
    job.runs_once("n3")
    job.end()


def test_short_cut_before_the_commit(lab: LabUnderTest, job: Job, faults: Faults) -> None:
    """What TCP can mend within its time is no reason to give up."""
    faults.set("n2", "before_restore", "hang")
    move = Background(job, "n2")
    faults.wait("n2", "before_restore")
    lab.cut("n2")
    faults.clear("n2", "before_restore")
    time.sleep(2)
    lab.heal("n2")
    r = move.wait()
    assert r.returncode == 0, (r.returncode, r.stderr)
    job.runs_once("n2")
    job.end()


def test_power_loss_of_the_destination(lab: LabUnderTest, breakdown: Callable[..., Breakdown], start: Callable[..., Job]) -> None:
    """In the middle of moves, and while it is a host: the shell of a lost guest sees a SIGKILL."""
    shell = lab.pty(HOME, ["bash", "--norc", "-i"])
    shell.sendline("sleep 1000 & echo pid=$!; wait $!; echo status=$?")
    shell.expect(r"pid=(\d+)\r\n")
    guest = int(shell.match[1])
    assert lab.run(HOME, ["migrate", str(guest), "n2"]).returncode == 0
    hosted = start()
    hosted.move("n2")
    b = breakdown(HOME, "n2")
    lab.kill("n2")
    b.release(HOME)
    b.never_twice()
    b.given_up()
    lab.start("n2")
    # another boot: whatever was there is gone, and had not run before
    for stage in ("after_commit", "before_running"):
        b.jobs[stage].runs_once(HOME)
        assert b.moves[stage].wait().returncode in (4, 5)
    b.close()
    shell.expect(r"status=(\d+)\r\n", timeout=20)
    assert int(shell.match[1]) == 128 + 9
    hosted.until(hosted.gone, "home's process of a lost guest ends")
    assert len(events(lab, hosted, "lost")) == 1
    hosted.check_lines()
    hosted.end(*b.jobs.values())


@contextlib.contextmanager
def cut(lab: LabUnderTest) -> Iterator[None]:
    """n2 without a link, for twenty seconds."""
    lab.cut("n2")
    time.sleep(20)
    yield
    lab.heal("n2")


@contextlib.contextmanager
def no_address(lab: LabUnderTest) -> Iterator[None]:
    """n2 without its address, as when a cable is pulled on a desktop, for so long that TCP gives up by the number of its probes."""
    address = lab.run("n2", "ip -4 -o addr show eth0").stdout.split()[3]
    assert lab.run("n2", ["ip", "addr", "del", address, "dev", "eth0"]).returncode == 0
    time.sleep(40)
    yield
    assert lab.run("n2", ["ip", "addr", "add", address, "dev", "eth0"]).returncode == 0


@pytest.mark.parametrize("outage", [cut, no_address])
def test_outage_while_the_guest_prints(
    lab: LabUnderTest, programs: Guests, outage: Callable[[LabUnderTest], contextlib.AbstractContextManager[None]]
) -> None:
    """In the middle of output into a pipe: nothing is missing, doubled or out of order."""
    command = f"{programs.verify} -b -o 5 -p 1000 -s 26 | cat > /tmp/printed"
    lab.path(HOME, "/tmp/printed").unlink(missing_ok=True)
    running = enter.Running(lab.lab, lab.lab.node(HOME), ["bash", "-c", command], stdio=[null() for _ in range(3)])
    try:
        printed = lab.path(HOME, "/tmp/printed")
        lab.wait_for(lambda: printed.exists() and printed.stat().st_size > 500, what="it prints")
        pid = int(printed.read_text().split("pid=")[1].split()[0])
        assert lab.run(HOME, ["migrate", str(pid), "n2"]).returncode == 0
        size = printed.stat().st_size
        lab.wait_for(lambda: printed.stat().st_size > size, what="it prints from n2")
        with outage(lab):
            assert lab.alive(HOME, pid)
        assert enter.exit_status(running.wait()) == 0
        lines = printed.read_text().splitlines()
        assert [line.split()[0] for line in lines] == [f"{i:08d}" for i in range(len(lines))]
        ticks = [line.split()[2] for line in lines if " tick " in line]
        assert ticks == [str(i) for i in range(len(ticks))] and len(ticks) > 500
        assert "all pages" in lines[-2] and "done" in lines[-1]
    finally:
        running.close()
    nothing_left(lab)


def null() -> int:
    """A descriptor that the node replaces by its own /dev/null."""
    return os.open("/dev/null", os.O_RDWR)
