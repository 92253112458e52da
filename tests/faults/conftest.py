"""What the tests of faults share: a lab, a process that verifies itself, and eyes on every node of the lab at once."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omtools.moslab import power

from tests.cluster.conftest import LabUnderTest, lab, own_lab, shared_lab
from tests.guests.build import Guests, build

__all__ = ["lab", "own_lab", "shared_lab"]  # fixtures: pytest finds them here by their names

HOME = "n1"
LINE = 11
"""Bytes of a line that `verify` writes."""
_numbers = itertools.count()


class Job:
    """``verify``, started on n1: checks its memory all the time and writes numbered lines to two files at home.

    A second copy of it would write a number twice, a copy of an earlier state would too; and whatever runs is found among all
    processes of the machine by a name that no other process has.
    """

    def __init__(self, lab: LabUnderTest, verify: Path, *options: str) -> None:
        self.lab = lab
        self.name = f"verify-{os.getpid()}-{next(_numbers)}"
        self.file = f"/tmp/{self.name}"
        self.pid = lab.spawn(HOME, [str(verify), "-b", "-m", "2", "-p", "2000", "-f", self.file, *options])
        lab.wait_for(lambda: self.lines() > 2, what="it writes")

    # -- what it does

    def lines(self) -> int:
        """How many it has written, as home sees it now."""
        try:
            return os.stat(self.lab.path(HOME, self.file)).st_size // LINE
        except FileNotFoundError:
            return 0

    def check_lines(self) -> None:
        """Both files hold 0, 1, 2 … and nothing else."""
        for name in (self.file, f"{self.file}.offset"):
            got = self.lab.path(HOME, name).read_text().splitlines()
            wrong = [(i, x) for i, x in enumerate(got) if x != f"{i:010d}"]
            assert not wrong, f"{name}: {len(wrong)} wrong lines, first (index, text): {wrong[:3]}"

    def goes_on(self, timeout: float = 10) -> None:
        """It writes more lines."""
        n = self.lines()
        self.until(lambda: self.lines() > n + 3, "it goes on", timeout)

    def until(self, condition: Callable[[], object], what: str, timeout: float = 20) -> None:
        """Poll until the condition is true; a failure tells all about the job."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout:g} s: {what}; {self.describe()}")
            time.sleep(0.02)

    # -- where it is

    def copies(self) -> dict[int, str]:
        """All processes of the machine that are this program, with their nodes; a deputy is another program."""
        found = {}
        for p in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                ours = self.file.encode() in Path(f"/proc/{p}/cmdline").read_bytes() and os.readlink(f"/proc/{p}/exe").endswith("/verify")
                if ours:
                    found[p] = self._node(p)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended just now, or is a zombie
        return found

    def _node(self, pid: int) -> str:
        net = os.readlink(f"/proc/{pid}/ns/net")
        for n in self.lab.lab.nodes:
            try:
                if os.readlink(f"/proc/{self.lab.lab.pid_file(n).read_text().strip()}/ns/net") == net:
                    return n.name
            except FileNotFoundError:
                continue  # the node is off
        return "?"

    def running(self, seconds: float = 0.25) -> list[str]:
        """Nodes on which a copy makes progress, one entry a copy."""
        before = {p: _switches(p) for p in self.copies()}
        time.sleep(seconds)
        return [node for p, node in self.copies().items() if p in before and _switches(p) > before[p]]

    def runs_once(self, where: str) -> None:
        """One copy, on ``where``, and it runs; no other, not even a frozen one.  What it has written is whole."""
        self.goes_on()
        self.until(lambda: list(self.copies().values()) == [where], f"one copy, on {where}", 5)
        assert self.running() == [where], self.describe()
        self.check_lines()

    def describe(self) -> str:
        """For a failing test."""
        parts = [f"copies {self.copies()}, {self.lines()} lines"]
        for n in self.lab.lab.nodes:
            if not power.is_on(self.lab.lab, n):
                continue
            logs = f"tail -n 12 /run/mig/log/*-{self.pid}.log"
            r = self.lab.run(n.name, f"ls /run/mig/journal /run/mig/agents /run/mig/keepers; {logs}; mosps -a")
            parts.append(f"{n.name}:\n{r.stdout}{r.stderr}")
        return "\n".join(parts)

    # -- what is done to it

    def migrate(self, to: str, *options: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """The tool, on its home node."""
        return self.lab.run(HOME, ["migrate", *options, str(self.pid), to], timeout=timeout)

    def move(self, to: str) -> None:
        """A move that must succeed."""
        r = self.migrate(to)
        assert r.returncode == 0, f"{r.returncode} {r.stderr}{self.describe()}"

    def alive(self) -> bool:
        """Whether home still has its pid."""
        return self.lab.alive(HOME, self.pid)

    def gone(self) -> bool:
        """Whether it has ended, at home and everywhere."""
        return not self.alive() and not self.copies()

    def end(self, *others: Job) -> None:
        """Kill it, and others, by their pids at home; they are gone everywhere, and nothing is left of them."""
        for job in (self, *others):
            self.lab.signal(HOME, job.pid, 9)
        for job in (self, *others):
            job.until(job.gone, "it ends")
        nothing_left(self.lab)


def _switches(pid: int) -> int:
    """Voluntary context switches: they grow with every round of a program that sleeps in between."""
    try:
        m = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return int(m[1]) if m else -1


_DIRECTORIES = ("agents", "keepers", "work", "conversions", "journal")


def left(lab: LabUnderTest) -> list[str]:
    """Everything of moves and guests that is on the lab's nodes now: sockets, journals, images, cgroups, mounts, helpers."""
    out = [str(d) for d, _, _ in os.walk(lab.lab.cgroup.path) if os.path.basename(d).startswith("mig-")]
    networks = {}
    for n in lab.lab.nodes:
        if not power.is_on(lab.lab, n):
            continue
        root = lab.path(n.name, "/")
        networks[os.readlink(root.parent / "ns/net")] = n.name
        for d in _DIRECTORIES:
            out += [f"{n.name}: {d}/{f}" for f in _names(root / "run/mig" / d)]
        mounts = [line.split() for line in (root.parent / "mounts").read_text().splitlines()]
        out += [f"{n.name}: {m[2]} at {m[1]}" for m in mounts if m[2].split(".")[0] == "fuse" or m[1].startswith("/run/mig/")]
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{p}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (" -m mig." in command or " swrk " in command) and (net := os.readlink(f"/proc/{p}/ns/net")) in networks:
                out.append(f"{networks[net]}: {command}")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
    return out


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []


def nothing_left(lab: LabUnderTest, timeout: float = 10) -> None:
    """Fails unless all of it goes within some seconds."""
    deadline = time.monotonic() + timeout
    while found := left(lab):
        assert time.monotonic() < deadline, "left behind:\n" + "\n".join(found)
        time.sleep(0.1)


class Watch:
    """The longest time for which the job wrote nothing, seen at home, while a ``with`` block lasts."""

    def __init__(self, job: Job) -> None:
        self.job, self.longest = job, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        lines, since = self.job.lines(), time.monotonic()
        while not self._over.wait(0.02):
            now, t = self.job.lines(), time.monotonic()
            self.longest = max(self.longest, t - since)
            if now != lines:
                lines, since = now, t


class Faults:
    """Named fault points of a lab's nodes."""

    def __init__(self, lab: LabUnderTest) -> None:
        self.lab = lab

    def set(self, node: str, point: str, action: str) -> None:
        """Switch a point on."""
        self.lab.path(node, f"/run/mig/faults/{point}").write_text(action)

    def clear(self, node: str, point: str) -> None:
        """Switch it off; who hangs there goes on."""
        self.lab.path(node, f"/run/mig/faults/{point}").unlink()

    def hit(self, node: str, point: str) -> bool:
        """Whether it was reached."""
        return self.lab.path(node, f"/run/mig/faults/{point}.hit").exists()

    def wait(self, node: str, point: str) -> None:
        """Until it is reached."""
        self.lab.wait_for(lambda: self.hit(node, point), 20, f"{point} on {node} is reached")


class Background:
    """``migrate`` in a thread of its own."""

    def __init__(self, job: Job, to: str, *options: str) -> None:
        self.result: subprocess.CompletedProcess[str] | None = None
        self.began = time.monotonic()
        self.took = 0.0

        def work() -> None:
            self.result = job.migrate(to, *options, timeout=150)
            self.took = time.monotonic() - self.began

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def wait(self, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Its end."""
        self._thread.join(timeout)
        assert self.result is not None, f"migrate has not ended after {timeout:g} s"
        return self.result


def events(lab: LabUnderTest, job: Job, kind: str, node: str = HOME) -> list[dict[str, object]]:
    """Events of this kind about the job that a node has noted."""
    rows = map(json.loads, lab.run(node, ["mosctl", "events", "--json"], check=True).stdout.splitlines())
    return [r for r in rows if r.get("kind") == kind and r.get("pid") == job.pid]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """The self-verifying guests, compiled, in a directory that every user may read."""
    directory = tmp_path_factory.mktemp("programs")
    for d in (directory, *directory.parents):
        if d.stat().st_uid == os.getuid() and d.is_relative_to(tmp_path_factory.getbasetemp().parent):
            d.chmod(0o755)
    return build(directory)


@pytest.fixture
def job(lab: LabUnderTest, programs: Guests) -> Job:
    """One process, at home."""
    return Job(lab, programs.verify)


@pytest.fixture
def start(lab: LabUnderTest, programs: Guests) -> Callable[..., Job]:
    """Start another one."""
    return lambda *options: Job(lab, programs.verify, *options)


@pytest.fixture
def faults(lab: LabUnderTest) -> Iterator[Faults]:
    """Switches of fault points; they are off after the test."""
    yield Faults(lab)
