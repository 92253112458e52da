"""What cannot be done is refused by every tool with the documented status and all reasons, and nothing is touched."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.conftest import MOSLAB, LabUnderTest
from tests.guests.build import Guests

from .conftest import HOME, Job, left, nothing_left

NOBODY = 999_999
"""A process number that no node of a lab has."""


def state(lab: LabUnderTest, pid: int) -> list[str]:
    """What must be the same after an attempt that was refused."""
    lines = lab.path(HOME, f"/proc/{pid}/status").read_text().splitlines()
    keep = ("Name", "Tgid", "PPid", "TracerPid", "Uid", "Threads", "SigBlk", "SigIgn", "SigCgt", "VmSize")
    fds = lab.path(HOME, f"/proc/{pid}/fd")
    return [
        *(line for line in lines if line.startswith(keep)),
        lab.path(HOME, f"/proc/{pid}/cgroup").read_text(),
        *sorted(f"{f} {os.readlink(fds / f)}" for f in os.listdir(fds)),
    ]


class Refusals:
    """Runs tools that must refuse."""

    def __init__(self, lab: LabUnderTest) -> None:
        self.lab = lab

    def __call__(self, status: int, *words: str | int, says: Sequence[str] = (), uid: int | None = None) -> str:
        """The command ends with ``status``, says all of ``says`` on standard error and leaves nothing; what it said."""
        argv = [str(w) for w in words]
        r = self.lab.run(HOME, argv, uid)
        assert r.returncode == status, (argv, r.returncode, r.stdout, r.stderr)
        missing = [s for s in says if s not in r.stderr]
        assert not missing, (argv, missing, r.stderr)
        assert r.stderr.strip() and "Traceback" not in r.stderr, (argv, r.stderr)
        nothing_left(self.lab, 5)
        return str(r.stderr)


@pytest.fixture
def refused(lab: LabUnderTest) -> Refusals:
    """``refused(2, "migrate", 1, "n2")``."""
    return Refusals(lab)


@pytest.fixture
def sleeper(lab: LabUnderTest) -> Iterator[int]:
    """A process that could move; it must be as it was at the end."""
    pid = lab.spawn(HOME, ["sleep", "1000"])
    lab.wait_for(lambda: "State:\tS" in lab.path(HOME, f"/proc/{pid}/status").read_text(), what="it sleeps")
    before = state(lab, pid)
    yield pid
    assert state(lab, pid) == before


# -- migrate ----------------------------------------------------------------------------------------------------------------------


def test_processes_that_are_none(lab: LabUnderTest, refused: Refusals) -> None:
    for option in ([], ["--dry-run"]):
        refused(2, "migrate", *option, NOBODY, "n2", says=[f"no process {NOBODY}"])
        refused(2, "migrate", *option, 1, "n2", says=["init"])
        refused(2, "migrate", *option, 0, "n2", says=["0"])
        refused(2, "migrate", *option, "--", -5, "n2", says=["-5"])
        refused(2, "migrate", *option, "abc", "n2", says=["abc"])
    parent = lab.spawn(HOME, ["python3", "-c", "import os, time\nif os.fork() == 0: os._exit(0)\ntime.sleep(1000)"])
    lab.wait_for(lambda: lab.children(HOME, parent), what="it forks")
    (zombie,) = lab.children(HOME, parent)
    lab.wait_for(lambda: not lab.alive(HOME, zombie), what="its child ends")
    refused(2, "migrate", zombie, "n2", says=["has ended"])


def test_a_thread_is_not_a_process(lab: LabUnderTest, refused: Refusals, programs: Guests) -> None:
    job = Job(lab, programs.verify)
    thread = max(int(t) for t in os.listdir(lab.path(HOME, f"/proc/{job.pid}/task")))
    assert thread != job.pid
    refused(2, "migrate", thread, "n2", says=["thread", str(job.pid)])
    job.runs_once(HOME)


def test_nodes_that_are_none(lab: LabUnderTest, refused: Refusals, sleeper: int) -> None:
    for option in ([], ["--dry-run"]):
        said = refused(2, "migrate", *option, sleeper, "nowhere", says=["nowhere"])
        assert all(n.name in said for n in lab.lab.nodes)  # the ones that there are
        refused(2, "migrate", *option, sleeper, HOME, says=["already"])
        refused(2, "migrate", *option, sleeper, "home", says=["already"])
        refused(2, "migrate", *option, sleeper, "", says=[])
    refused(2, "migrate", sleeper)
    refused(2, "migrate", sleeper, "n2", "--timeout", "-1", says=["timeout"])
    refused(2, "migrate", sleeper, "n2", "--timeout", "soon")
    refused(2, "migrate", sleeper, "n2", "--unknown")


def test_other_users_processes(lab: LabUnderTest, refused: Refusals, sleeper: int) -> None:
    for option in ([], ["--dry-run"]):
        refused(6, "migrate", *option, sleeper, "n2", uid=1000, says=["user"])
    own = lab.spawn(HOME, ["sleep", "1000"], 1000)
    refused(6, "migrate", own, "n2", uid=1001, says=["1000"])
    for tool in ("lock", "unlock"):
        refused(6, "mosctl", tool, sleeper, uid=1000)
    for tool in ("block", "noblock"):
        refused(6, "mosctl", tool, uid=1000)
    assert lab.run(HOME, ["migrate", str(own), "n2"], 1000).returncode == 0


def test_a_blocked_node(lab: LabUnderTest, refused: Refusals, sleeper: int) -> None:
    lab.run("n2", ["mosctl", "block"], check=True)
    try:
        lab.wait_for(lambda: not accepts(lab, "n2"), what="n1 hears of it")
        for option in ([], ["--dry-run"]):
            refused(3, "migrate", *option, sleeper, "n2", says=["n2 does not accept guests"])
        refused(3, "mosrun", "-N", "n2", "true", says=["n2"])
    finally:
        lab.run("n2", ["mosctl", "noblock"], check=True)
    lab.wait_for(lambda: accepts(lab, "n2"), what="n1 hears of it")


def accepts(lab: LabUnderTest, node: str) -> bool:
    """Whether home believes that the node takes guests."""
    rows = json.loads(lab.run(HOME, ["mosctl", "status", "--json"], check=True).stdout)
    return bool(next(r["accepting"] for r in rows if r["name"] == node))


def test_users_that_a_node_does_not_take(own_lab: Callable[..., LabUnderTest]) -> None:
    lab = own_lab("--set", "allow_root_guests=false", nodes=2)
    pid = lab.spawn(HOME, ["sleep", "1000"])
    lab.wait_for(lambda: "State:\tS" in lab.path(HOME, f"/proc/{pid}/status").read_text(), what="it sleeps")
    before = state(lab, pid)
    for option in (["--dry-run"], []):
        Refusals(lab)(3, "migrate", *option, pid, "n2", says=["n2 takes no process of user 0", "n2 takes no process of group 0"])
    assert state(lab, pid) == before
    urgent = lab.spawn(HOME, ["sleep", "1000"], 1000)
    lab.run(HOME, ["renice", "-n", "-5", "-p", str(urgent)], check=True)
    for option in (["--dry-run"], []):
        Refusals(lab)(3, "migrate", *option, urgent, "n2", says=["n2 takes no process with privileges", "nice value -5"])
    assert "step freeze" not in lab.path(HOME, f"/run/mig/log/agent-{urgent}.log").read_text(), "it was not even stopped"
    own = lab.spawn(HOME, ["sleep", "1000"], 1000)
    assert lab.run(HOME, ["migrate", str(own), "n2"]).returncode == 0


def test_the_command_that_asks_is_named(lab: LabUnderTest) -> None:
    r = lab.run(HOME, "migrate $$ n2; exit $?")
    assert r.returncode == 3 and "the command that asks for the move" in r.stderr and "socket" not in r.stderr


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["tcp-listen"], ["TCP"]),
        (["udp"], ["UDP"]),
        (["io_uring"], ["io_uring"]),
        (["device"], ["/dev/fuse"]),
        (["tcp-listen", "udp", "device", "io_uring"], ["TCP", "UDP", "/dev/fuse", "io_uring"]),
    ],
)
def test_what_cannot_move(lab: LabUnderTest, refused: Refusals, programs: Guests, kinds: list[str], says: list[str]) -> None:
    pid = lab.spawn(HOME, [str(programs.holder), *kinds])
    lab.wait_for(lambda: "ready" in lab.output(HOME, pid) or not lab.alive(HOME, pid), what="it holds them")
    assert lab.alive(HOME, pid), lab.output(HOME, pid)
    before = state(lab, pid)
    for option in ([], ["--dry-run"]):
        said = refused(3, "migrate", *option, pid, "n2", says=says)
        assert said.count("\n  - ") >= len(kinds)
    r = lab.run(HOME, ["migrate", "--json", str(pid), "n2"])
    error = json.loads(r.stdout)["error"]
    assert error["code"] == "cannot-move" and len(error["reasons"]) >= len(kinds)
    assert state(lab, pid) == before


def test_obstacles_of_process_and_node_are_listed_together(lab: LabUnderTest, refused: Refusals, programs: Guests) -> None:
    pid = lab.spawn(HOME, [str(programs.holder), "udp"])
    lab.wait_for(lambda: "ready" in lab.output(HOME, pid), what="it holds it")
    lab.run("n2", ["mosctl", "block"], check=True)
    try:
        lab.wait_for(lambda: not accepts(lab, "n2"), what="n1 hears of it")
        refused(3, "migrate", pid, "n2", says=["UDP", "n2 does not accept guests"])
    finally:
        lab.run("n2", ["mosctl", "noblock"], check=True)
    lab.wait_for(lambda: accepts(lab, "n2"), what="n1 hears of it")


def test_a_dry_run_touches_nothing(lab: LabUnderTest, sleeper: int) -> None:
    r = lab.run(HOME, ["migrate", "--dry-run", str(sleeper), "n2"], check=True)
    assert "n2" in r.stdout and str(sleeper) in r.stdout
    assert not left(lab)


def test_a_node_that_is_off(lab: LabUnderTest, refused: Refusals, sleeper: int) -> None:
    lab.kill("n3")
    refused(4, "migrate", sleeper, "n3", says=["n3", "cannot be reached: no answer", "still running on n1"])
    lab.wait_for(lambda: not alive(lab, "n3"), what="n1 notices")
    refused(3, "migrate", sleeper, "n3", says=["n3"])
    refused(3, "migrate", "--dry-run", sleeper, "n3", says=["n3"])


def alive(lab: LabUnderTest, node: str) -> bool:
    """Whether home believes that the node is there."""
    rows = json.loads(lab.run(HOME, ["mosctl", "status", "--json"], check=True).stdout)
    return any(r["name"] == node and r["state"] == "alive" for r in rows)


# -- mosrun -----------------------------------------------------------------------------------------------------------------------


def test_mosrun(lab: LabUnderTest, refused: Refusals) -> None:
    lab.run(HOME, "echo no program > /tmp/not-executable; chmod 644 /tmp/not-executable", check=True)
    refused(127, "mosrun", "no-such-command", says=["no-such-command"])
    refused(126, "mosrun", "/tmp/not-executable", says=["/tmp/not-executable"])
    refused(126, "mosrun", "/tmp", says=["/tmp"])
    refused(2, "mosrun", "-N", "nowhere", "true", says=["nowhere"])
    refused(2, "mosrun", "-j", "n2,nowhere", "true", says=["nowhere"])
    refused(2, "mosrun", "-N")
    refused(2, "mosrun", "-x", "true", says=["-x"])
    refused(2, "mosrun", "-b", "-h", "true")
    refused(2, "mosrun")


# -- the other tools --------------------------------------------------------------------------------------------------------------


def test_mosctl_and_mosps(lab: LabUnderTest, refused: Refusals) -> None:
    for verb in ("lock", "unlock", "why"):
        refused(2, "mosctl", verb, NOBODY, says=[str(NOBODY)])
        refused(2, "mosctl", verb, 0, says=["0"])
        refused(2, "mosctl", verb, "abc", says=["abc"])
        refused(2, "mosctl", verb)
    for verb in ("status", "whois", "isup", "getload", "getspeed", "getmem", "getfree", "getutil"):
        refused(2, "mosctl", verb, "nowhere", says=["nowhere"])
    refused(2, "mosctl", "no-such-verb")
    refused(2, "mosctl")
    refused(2, "mosctl", "events", "--since", "soon")
    refused(2, "mosps", "--no-such-option")
    refused(2, "mosps", "word")


def test_without_a_daemon(lab: LabUnderTest, refused: Refusals, sleeper: int) -> None:
    lab.signal(HOME, lab.daemon_pid(HOME), 9)
    lab.wait_for(lambda: not lab.daemon_pid(HOME), what="omdiscd ends")
    refused(7, "migrate", sleeper, "n2", says=["omdiscd"])
    refused(7, "migrate", "--dry-run", sleeper, "n2", says=["omdiscd"])
    refused(7, "mosctl", "status", says=["omdiscd"])
    refused(7, "mosctl", "lock", sleeper, says=["omdiscd"])
    refused(7, "mosps", says=["omdiscd"])
    refused(7, "mosrun", "-N", "n2", "true", says=["omdiscd"])
    refused(7, "mosrun", "-b", "true", says=["omdiscd"])
    r = lab.run(HOME, ["mosrun", "sh", "-c", "exit 5"])
    assert r.returncode == 5 and "will not move" in r.stderr


def test_moslab(lab: LabUnderTest) -> None:
    def moslab(*args: str, status: int, name: str = lab.name, says: str = "") -> None:
        r = subprocess.run([MOSLAB, "--lab", name, *args], capture_output=True, text=True, timeout=30, check=False)
        assert r.returncode == status and says in r.stderr and r.stderr and "Traceback" not in r.stderr, (args, r.returncode, r.stderr)

    for verb in ("run", "spawn"):
        moslab(verb, "n9", "--", "true", status=2, says="n9")
        moslab(verb, HOME, status=2, says="command")
        moslab(verb, HOME, "--", "no-such-command", status=127, says="no-such-command")
        moslab(verb, HOME, "--", "/tmp", status=126, says="/tmp")
        moslab(verb, HOME, "-u", "no-such-user", "--", "true", status=2, says="no-such-user")
    for verb in ("kill", "start", "cut", "heal", "restart-daemon"):
        moslab(verb, "n9", status=2, says="n9")
        moslab(verb, status=2)
    moslab("start", HOME, status=2, says=HOME)
    moslab("up", "3", status=2, says=lab.name)
    for words in (["0"], ["many"], ["1000"], ["2", "--link", "fast"], ["2", "--speed", "n1"], ["2", "--set", "nonsense=1"]):
        moslab("up", *words, status=2, name=f"{lab.name}-no")
    moslab("status", status=2, name="no-such-lab", says="no-such-lab")
    moslab("run", HOME, "--", "true", status=2, name="no-such-lab", says="no-such-lab")
    moslab("status", status=2, name="../etc")
    moslab("dance", status=2)
    assert not Path(f"/run/moslab/{lab.name}-no").exists()
