"""A process that is caught at its exec, before the first instruction of the new program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mig.deputy.hold_at_exec import hold_at_exec
from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup
from tests.kernel.deputy_lab import until

LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *a: print("handled", flush=True))
print("up", flush=True)
sys.stdin.readline()
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Launcher:
    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", LAUNCHER, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        self.group = Cgroup(cgroup.root() / f"mig-test-deputy-{os.getpid()}-hold")
        assert self.line() == "up"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    x = Launcher("sh", "-c", "echo ran; exit 5")
    yield x
    if x.group.exists():
        x.group.kill()
    x.process.kill()
    x.process.communicate()
    x.group.remove()


def test_it_stands_frozen_before_its_first_instruction(launcher: Launcher) -> None:
    hold_at_exec(launcher.pid, launcher.group, launcher.go)
    s = procfs.status(launcher.pid)
    assert launcher.group.is_frozen() and s.tracer == 0 and s.name == "sh"
    assert procfs.cmdline(launcher.pid)[0] == b"sh"
    assert not any("libc" in m.path for m in procfs.maps(launcher.pid))  # its dynamic linker has not begun
    assert procfs.stat(launcher.pid).utime == procfs.stat(launcher.pid).utime
    launcher.group.thaw()
    assert launcher.line() == "ran" and launcher.process.wait(15) == 5


def test_signals_work_while_it_is_waited_for(launcher: Launcher) -> None:
    def ready() -> None:
        os.kill(launcher.pid, signal.SIGUSR1)
        launcher.go()

    hold_at_exec(launcher.pid, launcher.group, ready)
    assert launcher.line() == "handled"
    launcher.group.thaw()
    assert launcher.line() == "ran"


def test_it_can_be_stopped_and_continued_while_it_is_waited_for(launcher: Launcher) -> None:
    child = 0

    def ready() -> None:
        nonlocal child
        os.kill(launcher.pid, signal.SIGSTOP)
        child = os.fork()
        if not child:  # meanwhile the tracer waits
            try:
                until(lambda: procfs.state(launcher.pid) in "Tt", "stopped")
                os.kill(launcher.pid, signal.SIGCONT)
                launcher.go()
            finally:
                os._exit(0)

    hold_at_exec(launcher.pid, launcher.group, ready)
    os.waitpid(child, 0)
    assert launcher.group.is_frozen()
    launcher.group.thaw()
    assert launcher.line() == "ran"


def test_a_process_that_ends_without_an_exec(launcher: Launcher) -> None:
    with pytest.raises(ProcessLookupError, match="without an exec"):
        hold_at_exec(launcher.pid, launcher.group, lambda: os.kill(launcher.pid, signal.SIGTERM))


def test_an_error_of_the_caller_lets_it_go(launcher: Launcher) -> None:
    def ready() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        hold_at_exec(launcher.pid, launcher.group, ready)
    assert procfs.status(launcher.pid).tracer == 0
    launcher.go()
    assert launcher.line() == "ran" and launcher.process.wait(15) == 5


def test_no_such_process(launcher: Launcher) -> None:
    launcher.go()
    assert launcher.process.wait(15) == 5
    with pytest.raises(ProcessLookupError):
        hold_at_exec(launcher.pid, launcher.group, lambda: None)
