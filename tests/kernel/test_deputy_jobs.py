"""A deputy as the job of a real shell on a real terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator

import pexpect
import pytest

from mig.deputy import link
from mig.deputy.convert import convert
from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup
from tests.kernel.deputy_lab import Agent, Start, built, start, until

__all__ = ["built", "start"]

PROMPT = "PROMPT> "


class Shell:
    """An interactive bash, and deputies made of its jobs."""

    def __init__(self) -> None:
        env = {**os.environ, "PS1": PROMPT, "TERM": "dumb"}
        self.tty = pexpect.spawn("bash", ["--norc", "--noprofile", "-i"], env=env, encoding="utf8", timeout=15, dimensions=(50, 200))
        self.tty.expect(PROMPT)
        self.groups: list[Cgroup] = []
        self.agents: list[Agent] = []

    def run(self, line: str) -> str:
        self.tty.sendline(line)
        self.tty.expect_exact(line)
        self.tty.expect(PROMPT)
        return str(self.tty.before)

    def job(self) -> int:
        until(lambda: procfs.children(self.tty.pid), "a job")
        return procfs.children(self.tty.pid)[-1]

    def foreground(self, line: str) -> int:
        self.tty.sendline(line)
        self.tty.expect_exact(line)
        self.tty.expect("job is up")
        return self.job()

    def depute(self, pid: int) -> Agent:
        g = Cgroup(cgroup.root() / f"mig-test-deputy-{os.getpid()}-job{len(self.groups)}")
        self.groups.append(g)
        g.create()
        g.capture(lambda: [pid])
        g.freeze()
        self.agents.append(Agent(convert(pid, thaw=g.thaw, freeze=g.freeze)))
        return self.agents[-1]

    def close(self) -> None:
        for g in self.groups:
            g.kill()
        self.tty.close(force=True)
        for g in self.groups:
            g.remove()
        for a in self.agents:
            a.close()


@pytest.fixture
def shell(start: Start) -> Iterator[Shell]:
    s = Shell()
    yield s
    s.close()


JOB = f"{os.path.realpath(sys.executable)} -c 'import time; print(\"job is up\"); time.sleep(1000)'"


def test_a_background_job_and_wait(shell: Shell) -> None:
    shell.run("sleep 1000 & ")
    pid = shell.job()
    until(lambda: procfs.comm(pid) == "sleep", "the exec")
    before = procfs.stat(pid), os.readlink(f"/proc/{pid}/fd/0")
    a = shell.depute(pid)
    now = procfs.stat(pid), os.readlink(f"/proc/{pid}/fd/0")
    for name in ("ppid", "pgid", "sid", "tty_nr", "start", "comm"):
        assert getattr(before[0], name) == getattr(now[0], name)
    assert before[1] == now[1]
    assert re.search(r"Running\s+sleep 1000", shell.run("jobs"))
    a.exit(37 << 8)
    assert "rc=37" in shell.run(f"wait {pid}; echo rc=$?")


def test_a_foreground_job_ends_and_the_shell_noticed_nothing(shell: Shell) -> None:
    a = shell.depute(shell.foreground(JOB))
    a.exit(37 << 8)
    shell.tty.expect(PROMPT)
    assert "Stopped" not in shell.tty.before
    assert "rc=37" in shell.run("echo rc=$?")


def test_ctrl_c_is_reported_and_the_status_is_130(shell: Shell) -> None:
    a = shell.depute(shell.foreground(JOB))
    shell.tty.send("\x03")
    s = a.signal()
    assert (s.sig, s.code) == (signal.SIGINT, link.SI_KERNEL) and link.should_forward(s)
    a.exit(signal.SIGINT)
    shell.tty.expect(PROMPT)
    assert "rc=130" in shell.run("echo rc=$?")


def test_ctrl_z_fg_and_bg(shell: Shell) -> None:
    pid = shell.foreground(JOB)
    a = shell.depute(pid)
    for _ in range(2):
        shell.tty.send("\x1a")
        assert a.signal().sig == signal.SIGTSTP
        assert procfs.state(pid) != "T"  # the guest decides
        a.sock.send(link.stop_packet(signal.SIGTSTP))
        shell.tty.expect("Stopped")
        shell.tty.expect(PROMPT)
        assert procfs.state(pid) == "T"
        assert "rc=148" in shell.run("echo rc=$?")
        shell.tty.sendline("fg")
        assert a.signal().sig == signal.SIGCONT
        until(lambda: procfs.state(pid) != "T", "it goes on")
    os.kill(pid, signal.SIGSTOP)
    shell.tty.expect("Stopped")
    shell.tty.expect(PROMPT)
    shell.run("bg")
    assert a.signal().sig == signal.SIGCONT
    assert "Running" in shell.run("jobs")
    a.exit(0)
    until(lambda: procfs.state(pid) is None, "its end")


def test_a_stop_where_the_kernel_ignores_the_terminal_s(start: Start) -> None:
    # an orphaned process group: SIGTSTP has no effect there, so the deputy takes SIGSTOP
    t = start("import os,time; os.setsid(); print('up', flush=True); time.sleep(1000)")
    a = Agent(t.convert())
    for sig in (signal.SIGTSTP, signal.SIGSTOP, signal.SIGTTIN):
        a.sock.send(link.stop_packet(sig))
        until(lambda: procfs.state(t.pid) == "T", "stopped")
        os.kill(t.pid, signal.SIGCONT)
        assert a.signal().sig == signal.SIGCONT
    assert a.quiet()
    a.exit(0)
    assert t.process.wait(15) == 0
    a.close()


def test_a_crash_s_status_is_139(shell: Shell) -> None:
    a = shell.depute(shell.foreground(JOB))
    a.exit(signal.SIGSEGV | 0x80)
    shell.tty.expect("Segmentation fault")
    shell.tty.expect(PROMPT)
    assert "rc=139" in shell.run("echo rc=$?")


def test_a_stopped_job_is_moved_and_stays_stopped(shell: Shell) -> None:
    pid = shell.foreground(JOB)
    shell.tty.send("\x1a")
    shell.tty.expect("Stopped")
    shell.tty.expect(PROMPT)
    a = shell.depute(pid)
    until(lambda: procfs.state(pid) == "T", "still stopped")
    assert a.quiet() and "Stopped" in shell.run("jobs")
    shell.tty.sendline("fg")
    assert a.signal().sig == signal.SIGCONT
    a.exit(3 << 8)
    shell.tty.expect(PROMPT)
    assert "rc=3" in shell.run("echo rc=$?")
