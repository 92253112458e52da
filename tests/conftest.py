"""For every test: what this machine can do is printed first; what a run leaves behind on it fails the run."""

from __future__ import annotations

import fcntl
import os
import signal
import uuid
from pathlib import Path

import pytest
from omtools import doctor

from tests.leftovers import MARK, Snapshot, leftovers

_LOCK = Path("/run/lock/mig-tests") if Path("/run/lock").is_dir() else Path("/tmp/mig-tests.lock")
_before = pytest.StashKey[Snapshot]()
_lock = pytest.StashKey[int]()
_report = pytest.StashKey[list[str]]()


def own_session() -> None:
    """Be the leader of a session of this pid namespace, where the one that we were started in has none here.

    A container's first command often runs in a session whose leader stayed outside.  CRIU rightly refuses to
    dump a member of such a session, and the guests of these tests are our children.
    """
    if os.getsid(0) == 0 and os.getpgid(0) != os.getpid():  # the leader of a group cannot leave its session
        os.setsid()


def keys_interrupt() -> None:
    """A shell without job control starts what it runs in the background with these ignored, and what we start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    own_session()
    keys_interrupt()
    os.environ[MARK] = uuid.uuid4().hex  # every process that descends from this run carries it
    config.stash[_report] = []
    config.stash[_lock] = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    fcntl.flock(config.stash[_lock], fcntl.LOCK_SH)
    config.stash[_before] = Snapshot.take()


def pytest_report_header() -> list[str]:
    return ["this machine:", *(f"  {c.line()}" for c in doctor.diagnose())]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.option.collectonly:
        return
    certain, perhaps = leftovers(config.stash[_before])
    try:
        fcntl.flock(config.stash[_lock], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # another run of the suite is under way on this machine: mounts, cgroups and interfaces may be its own
        config.stash[_report] += [f"(perhaps another run's) {x}" for x in perhaps]
    else:
        certain += perhaps
    config.stash[_report] += certain
    if certain and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash[_report]
    if left:
        terminalreporter.section("left behind on this machine", red=True)
        for line in left:
            terminalreporter.line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_lock])
