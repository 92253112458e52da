"""mospam against the real kernel: who may call it, what it leaves, and that it never waits.  Real PAM is in the cluster tests."""

from __future__ import annotations

import asyncio
import ctypes.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omdiscd.bell import Bell
from omdiscd.presence import Presence
from omdiscd.procscan import ProcessTable

from mig import paths
from mig.kernel import procfs

MOSPAM = Path(sys.prefix) / "libexec" / "mig" / "mospam"
LIBPAM = ctypes.util.find_library("pam") or "libpam.so.0"
CALLER = f"""
import ctypes, os, subprocess, sys
ctypes.CDLL({LIBPAM!r})  # as sshd has it
for line in sys.stdin:
    kind, _, rest = line.strip().partition(" ")
    env = {{"PAM_TYPE": kind, "PAM_SERVICE": "sshd", "PAM_USER": "ann", "PAM_TTY": "ssh", "PAM_RHOST": "10.0.0.9"}}
    env |= dict(x.split("=", 1) for x in rest.split()) if rest else {{}}
    r = subprocess.run([{str(MOSPAM)!r}, "--run", sys.argv[1]], env=env, capture_output=True, text=True)
    print(r.returncode, r.stderr.replace(chr(10), " "), flush=True)
"""


class Caller:
    """A process with libpam, which calls mospam as pam_exec does."""

    def __init__(self, run: Path) -> None:
        self.p = subprocess.Popen([sys.executable, "-c", CALLER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, line: str) -> str:
        assert self.p.stdin and self.p.stdout
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        return self.p.stdout.readline().strip()

    def end(self) -> None:
        self.p.kill()
        self.p.communicate()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "LOGINS", tmp_path / "logins")
    return tmp_path


@pytest.fixture
def caller(run: Path) -> Iterator[Caller]:
    c = Caller(run)
    yield c
    c.end()


def presence() -> Presence:
    return Presence(ProcessTable(), set)


def noted(run: Path) -> list[str]:
    return sorted(f.name for f in (run / "logins").iterdir())


def test_a_note_lives_from_open_to_close(run: Path, caller: Caller) -> None:
    assert caller.call("open_session").startswith("0 mospam: omdiscd does not hear of the login of ann (sshd): it does not run")
    (f,) = (run / "logins").iterdir()
    start = procfs.stat(caller.p.pid).start
    assert f.name == str(caller.p.pid) and f.stat().st_mode & 0o777 == 0o600 and (run / "logins").stat().st_mode & 0o777 == 0o700
    assert f.read_text().startswith(f"start={start}\nsince=") and f.read_text().endswith("service=sshd\nuser=ann\ntty=ssh\nhost=10.0.0.9\n")
    (s,) = [s for s in presence().sessions() if s.source == "pam"]
    assert (s.pid, s.user, s.host) == (caller.p.pid, "ann", "10.0.0.9")
    assert caller.call("close_session").startswith("0 ")
    assert noted(run) == []


def test_a_close_that_never_comes_heals_by_the_end_of_its_process(run: Path, caller: Caller) -> None:
    caller.call("open_session")
    p = presence()
    assert [s.user for s in p.sessions() if s.source == "pam"] == ["ann"]
    caller.end()
    assert not [s for s in p.sessions() if s.source == "pam"] and noted(run) == []


def test_a_note_of_a_number_that_was_used_again_is_nobodys(run: Path) -> None:
    (run / "logins").mkdir()
    (run / "logins" / str(os.getpid())).write_text("start=1\nsince=1\nservice=sshd\nuser=ann\ntty=\nhost=\n")
    (run / "logins" / "1").write_text("rubbish")
    assert not [s for s in presence().sessions() if s.source == "pam"] and noted(run) == []


@pytest.mark.parametrize("odd", ["PAM_USER=a\x01b", f"PAM_USER={'x' * 300}", "PAM_SERVICE=", "PAM_USER=", "PAM_RHOST=\x7f"])
def test_a_login_with_odd_values_goes_on_and_is_not_counted(run: Path, caller: Caller, odd: str) -> None:
    assert caller.call(f"open_session {odd}").startswith("0 mospam: ")
    assert not (run / "logins").exists()


@pytest.mark.parametrize("kind", ["auth", "account", "password", ""])
def test_other_calls_of_pam_are_none_of_its_business(run: Path, caller: Caller, kind: str) -> None:
    assert "only sessions concern me" in caller.call(kind) and not (run / "logins").exists()


def test_it_is_refused_outside_of_pam_and_for_users(run: Path) -> None:
    env = {"PAM_TYPE": "open_session", "PAM_SERVICE": "sshd", "PAM_USER": "ann"}
    r = subprocess.run(["sh", "-c", f"{MOSPAM} --run {run}; exit $?"], env=env, capture_output=True, text=True)
    assert r.returncode == 2 and "does not use PAM" in r.stderr
    r = subprocess.run([MOSPAM, "--run", run], env=env, capture_output=True, text=True, user=1000, group=1000, extra_groups=[])
    assert r.returncode == 6 and "only root's PAM" in r.stderr
    for wrong in (["--run"], ["x"], ["--run", "a", "b"]):
        assert subprocess.run([MOSPAM, *wrong], env=env, capture_output=True).returncode == 2
    assert not (run / "logins").exists()


def test_it_never_waits_for_a_daemon_that_does_not_read(run: Path, caller: Caller) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(run / "bell.sock"))
        answers = []
        for _ in range(300):  # more than any queue of datagrams holds
            answers.append(caller.call("open_session"))
            if "does not read" in answers[-1]:
                break
        assert answers[0] == "0" and "does not read; it finds the note when it looks" in answers[-1]
        assert all(a.startswith("0") for a in answers) and noted(run) == [str(caller.p.pid)]


def test_the_bell_is_rung_by_root_alone(run: Path, caller: Caller) -> None:
    async def ring() -> tuple[int, int]:
        rung = 0

        def hear() -> None:
            nonlocal rung
            rung += 1

        bell = Bell(run / "bell.sock", hear)
        bell.start()
        assert (run / "bell.sock").stat().st_mode & 0o777 == 0o600
        (run / "bell.sock").chmod(0o666)  # even if somebody opened it
        for d in (run, *run.parents):
            if d.stat().st_mode & 0o001 == 0:
                d.chmod(d.stat().st_mode | 0o011)
        send = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', {str(run / 'bell.sock')!r})"
        await asyncio.to_thread(subprocess.run, ["/usr/bin/env", "python3", "-c", send], check=True, user=1000, group=1000, extra_groups=[])
        await asyncio.to_thread(caller.call, "open_session")
        end = time.monotonic() + 10
        while not (rung and bell.refused) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        bell.close()
        return rung, bell.refused

    assert asyncio.run(ring()) == (1, 1)
    assert not (run / "bell.sock").exists()
