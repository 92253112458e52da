"""Labs for tests: ``lab``, three nodes that all tests of a run share and that each test finds whole; ``own_lab`` for one of your own."""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pytest
from omtools.moslab import enter, init, power, ready
from omtools.moslab import lab as labs

from mig.errors import MigError

SETTLED = 2.5
"""Seconds in which a probe, the indirect ones after it, and their refutation are over."""
MOSLAB = str(Path(sys.prefix) / "bin" / "moslab")
Command = str | Sequence[str]


def argv_of(command: Command) -> list[str]:
    """A string is a line for bash, a sequence is taken as it is."""
    return ["bash", "-c", command] if isinstance(command, str) else list(command)


class LabUnderTest:
    """A lab with what tests do in it.  Nodes are named n1…nN; pids are those that the node sees."""

    def __init__(self, name: str, *up: str, nodes: int = 3) -> None:
        self.name = name
        self.spawned: list[tuple[str, int]] = []
        self.sessions: list[Any] = []
        self.moslab("up", str(nodes), *up, check=True, timeout=60)
        self.lab = labs.load(name)

    # -- moslab itself

    def moslab(self, *args: str, check: bool = False, timeout: float = 60, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """The command line, with --lab."""
        r = subprocess.run([MOSLAB, "--lab", self.name, *args], capture_output=True, text=True, timeout=timeout, **kwargs)
        assert not check or r.returncode == 0, f"moslab {' '.join(args)}: {r.returncode}\n{r.stdout}{r.stderr}"
        return r

    def kill(self, node: str) -> None:
        """Power loss."""
        self.moslab("kill", node, check=True)

    def start(self, node: str) -> None:
        """The next boot."""
        self.moslab("start", node, check=True)

    def cut(self, node: str) -> None:
        """The link loses everything."""
        power.cut(self.lab, self.lab.node(node))

    def heal(self, node: str) -> None:
        """The link is whole again."""
        power.heal(self.lab, self.lab.node(node))

    def restart_daemon(self, node: str) -> None:
        """End omdiscd if it runs, start it, wait until it sees the others."""
        self.moslab("restart-daemon", node, check=True)

    def daemon_pid(self, node: str) -> int:
        """Of the node's omdiscd, as the node sees it; 0 when it does not run."""
        return enter.daemon_pid(self.lab, self.lab.node(node))

    def let_move(self, freely: bool) -> None:
        """Whether the nodes move processes by themselves.  A switch lasts until the node's next boot, so it is looked at each time."""
        verb, still = ("nostay", False) if freely else ("stay", True)
        for n in self.lab.nodes:
            switches = self.path(n.name, "/run/mig/switches.json")
            if (switches.exists() and '"stay": true' in switches.read_text()) != still:
                self.run(n.name, ["mosctl", verb], check=True)

    def down(self) -> None:
        """End the sessions, remove the lab."""
        for session in self.sessions:
            session.close(force=True)
        self.moslab("down", check=True)

    # -- processes

    def run(
        self,
        node: str,
        command: Command,
        uid: int | None = None,
        *,
        input: str | bytes = "",
        timeout: float = 60,
        env: dict[str, str] | None = None,
        cwd: str = "/",
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end with pipes for the three descriptors; returncode as in ``$?`` (128 + signal).  Text is UTF-8."""
        argv = argv_of(command)
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        try:
            running = enter.Running(
                self.lab,
                self.lab.node(node),
                argv,
                user=str(uid or 0),
                stdio=theirs,
                env={**enter.environment(), **(env or {})},
                cwd=cwd,
            )
        except enter.CannotStart as e:
            for fd in ours:
                os.close(fd)
            return subprocess.CompletedProcess(argv, e.exit_status, "", e.message)
        finally:
            for fd in theirs:
                os.close(fd)
        try:
            out, err = self._communicate(ours, input.encode() if isinstance(input, str) else input, time.monotonic() + timeout, argv)
            r = subprocess.CompletedProcess(
                argv, enter.exit_status(running.wait()), out.decode(errors="replace"), err.decode(errors="replace")
            )
        finally:
            running.close()
        assert not check or r.returncode == 0, f"{argv} in {node}: {r.returncode}\n{r.stdout}{r.stderr}"
        return r

    @staticmethod
    def _communicate(fds: list[int], data: bytes, deadline: float, argv: list[str]) -> tuple[bytes, bytes]:
        """Feed and read until both outputs end; closes the descriptors."""
        stdin, stdout, stderr = fds
        results = {stdout: bytearray(), stderr: bytearray()}
        os.set_blocking(stdin, False)
        with selectors.DefaultSelector() as selector:
            for fd in results:
                selector.register(fd, selectors.EVENT_READ)
            selector.register(stdin, selectors.EVENT_WRITE)
            try:
                while selector.get_map():
                    for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                        if key.fd == stdin:
                            try:
                                data = data[os.write(stdin, data) :] if data else b""
                            except BrokenPipeError:
                                data = b""
                            if data:
                                continue
                        else:
                            got = os.read(key.fd, 1 << 16)
                            results[key.fd] += got
                            if got:
                                continue
                        selector.unregister(key.fd)
                        os.close(key.fd)
                    if time.monotonic() > deadline:
                        raise subprocess.TimeoutExpired(argv, 0, bytes(results[stdout]), bytes(results[stderr]))
            finally:
                for key in list(selector.get_map().values()):
                    os.close(key.fd)
        return bytes(results[stdout]), bytes(results[stderr])

    def spawn(self, node: str, command: Command, uid: int | None = None, *, cwd: str = "/") -> int:
        """Start detached; returns its pid.  It is killed at the end of the test if it is still there.  See :meth:`output`."""
        pid = enter.spawn(self.lab, self.lab.node(node), argv_of(command), user=str(uid or 0), cwd=cwd)
        self.spawned.append((node, pid))
        return pid

    def output(self, node: str, pid: int) -> str:
        """What a spawned process has written so far, stdout and stderr together."""
        return self.path(node, f"{init.STATE}/out/{pid}").read_text()

    def pty(
        self, node: str, command: Command = ("bash", "-i"), uid: int | None = None, *, env: dict[str, str] | None = None, **kwargs: Any
    ) -> Any:
        """An interactive session (``pexpect.spawn``) whose terminal is one of the node; closed at the end of the test."""
        args = ["--lab", self.name, "run", node, "-u", str(uid or 0), "--", *argv_of(command)]
        environment = {**os.environ, "PS1": "$ ", "TERM": "dumb", **(env or {})}
        session = pexpect.spawn(MOSLAB, args, encoding="utf-8", timeout=30, env=environment, cwd="/", **kwargs)
        self.sessions.append(session)
        return session

    def signal(self, node: str, pid: int, number: int) -> None:
        """Send a signal from a shell in the node; no error when the process is gone."""
        self.run(node, f"kill -{int(number)} {pid} 2>/dev/null")

    def alive(self, node: str, pid: int) -> bool:
        """Whether there is such a process, zombies apart."""
        try:
            stat = self.path(node, f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"

    def children(self, node: str, pid: int) -> list[int]:
        """Pids of the children of a process."""
        r = self.run(node, ["ps", "-o", "pid=", "--ppid", str(pid)])
        return [int(p) for p in r.stdout.split()]

    # -- files

    def path(self, node: str, path: str) -> Path:
        """A file of the node as the machine reaches it; links to absolute paths lead astray."""
        return ready.tree(self.lab, self.lab.node(node)) / path.lstrip("/")

    # -- time

    @staticmethod
    def wait_for(condition: Callable[[], Any], timeout: float = 20, what: str = "") -> Any:
        """Poll until the condition is true; returns its value, fails after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout:g} s: {what or condition}")
            time.sleep(0.02)

    # -- between tests

    def make_whole(self) -> None:
        """Undo what a test did: its processes, faults, dead or cut nodes, dead daemons."""
        for session in self.sessions:
            session.close(force=True)
        self.sessions.clear()
        for node, pid in self.spawned:
            if power.is_on(self.lab, self.lab.node(node)) and self.alive(node, pid):
                self.signal(node, pid, signal.SIGKILL)
        self.spawned.clear()
        broken = False
        for n in self.lab.nodes:
            if not power.is_on(self.lab, n):
                self.start(n.name)
                broken = True
                continue
            if self.lab.cut_file(n).exists():
                self.heal(n.name)
                broken = True
            self.run(n.name, "rm -rf /run/mig/faults/*")
            if not self.daemon_pid(n.name):
                self.restart_daemon(n.name)
                broken = True
        ready.wait(self.lab, self.lab.nodes)
        if broken:
            # what a short failure left may be noticed only now: a probe that was under way makes a living node suspect for a moment
            time.sleep(SETTLED)
            ready.wait(self.lab, self.lab.nodes)


_numbers = itertools.count()


def make_name() -> str:
    """A lab name that no other test run has."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[LabUnderTest]:
    """The lab behind :func:`lab`; tests use that."""
    name = make_name()
    made = None
    try:
        made = LabUnderTest(name)
        yield made
    finally:
        if made is not None:
            made.down()
        else:
            subprocess.run([MOSLAB, "--lab", name, "down"], check=True)


LIVELY = {"test_adaptive_pool", "test_economy", "test_economy_mix", "test_moslab", "test_mosrun"}
"""Modules in whose tests processes move by themselves; elsewhere a guest that talks much would be drawn home in the middle of a test."""


@pytest.fixture
def lab(request: pytest.FixtureRequest, shared_lab: LabUnderTest) -> Iterator[LabUnderTest]:
    """Three nodes with running daemons that see each other."""
    shared_lab.let_move(request.module.__name__.rpartition(".")[2] in LIVELY)
    yield shared_lab
    try:
        shared_lab.make_whole()
    except MigError as e:
        pytest.fail(f"the test left a lab that cannot be made whole: {e.lines()}")


@pytest.fixture(scope="module")
def bare_lab() -> Iterator[LabUnderTest]:
    """Two nodes for tests of a module that need no daemon: nobody waits for one."""
    made = LabUnderTest(make_name(), "--no-wait", nodes=2)
    yield made
    made.down()


@pytest.fixture
def own_lab() -> Iterator[Callable[..., LabUnderTest]]:
    """Make labs for this test alone: ``own_lab("--set", "auto=all", nodes=2)``; they end with it."""
    names: list[str] = []
    made: list[LabUnderTest] = []

    def make(*up: str, nodes: int = 3) -> LabUnderTest:
        names.append(make_name())
        made.append(LabUnderTest(names[-1], *up, nodes=nodes))
        return made[-1]

    yield make
    for m in made:
        m.down()
    for name in names[len(made) :]:
        subprocess.run([MOSLAB, "--lab", name, "down"], check=True)
