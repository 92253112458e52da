"""Processes to make deputies of, a freezer group for each, and the deputy's binary built from the tree under test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mig.criu import layout
from mig.deputy import link
from mig.deputy.convert import Deputy, convert
from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup

COMPILE = [
    "gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-builtin",
    "-fcf-protection=none", "-fno-pie", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s",
]  # fmt: skip

NANOSLEEP = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
class T(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
t, rem, before = T(0, int(float(sys.argv[1]) * 1e9) % 10**9), T(), time.monotonic()
t.s = int(float(sys.argv[1]))
print("up", flush=True)
r = libc.nanosleep(ctypes.byref(t), ctypes.byref(rem))
print(r, ctypes.get_errno() if r else 0, round(time.monotonic() - before, 1), flush=True)
"""
THREADS = """
import threading, time
def work():
    while True: time.sleep(.005); sum(range(500))
for _ in range(4): threading.Thread(target=work, daemon=True).start()
print("up", flush=True)
while True: time.sleep(.02)
"""
SLEEPER = "import time; print('up', flush=True); time.sleep(1000)"


def until(true: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Wait for something that takes its time on a busy machine; fails when it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"did not come: {what}"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the deputy."""
    at = tmp_path_factory.mktemp("libexec")
    source = Path(__file__).parents[2] / "mig/deputy/deputy.c"
    subprocess.run([*COMPILE, "-o", at / "deputy", source], check=True)
    os.chmod(at / "deputy", 0o755)
    return at


def asleep(target: Target) -> None:
    """Wait until a NANOSLEEP target is in its call: glibc's nanosleep() is clock_nanosleep by now."""
    until(lambda: (c := procfs.syscall(target.pid, target.pid)) is not None and c.nr in (35, 230), "asleep")


def slept(line: str) -> bool:
    """What NANOSLEEP prints after a whole sleep of a second: no error, no remainder, and not less time (more on a busy machine)."""
    result, remainder, took = line.split()
    return (result, remainder) == ("0", "0") and 1.0 <= float(took) < 3.0


class Target:
    """A process in a cgroup of its own, as a child of ours."""

    def __init__(self, command: list[str], group: Cgroup, **popen: object) -> None:
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stdin", subprocess.DEVNULL)
        self.process: subprocess.Popen[bytes] = subprocess.Popen(command, **popen)  # type: ignore[call-overload]  # passed through
        self.pid = self.process.pid
        self.group = group
        group.create()
        group.add(self.pid)
        if popen["stdout"] == subprocess.PIPE:
            assert self.line() == "up"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def convert(self, **options: object) -> Deputy:
        return convert(self.pid, thaw=self.group.thaw, freeze=self.group.freeze, **options)  # type: ignore[arg-type]  # passed through

    def visible(self) -> tuple[object, ...]:
        """What an onlooker sees of the process, and what it would see of itself."""
        s, t = procfs.stat(self.pid), procfs.status(self.pid)
        ids = (s.ppid, s.pgid, s.sid, s.tty_nr, s.start, t.uids, t.gids, t.groups, t.no_new_privs, t.seccomp)
        root = os.readlink(f"/proc/{self.pid}/root"), os.readlink(f"/proc/{self.pid}/cwd")
        return ids, root, procfs.comm(self.pid), procfs.cmdline(self.pid)

    def inner(self) -> tuple[object, ...]:
        """What only the process itself could tell: all that a roll-back has to put back."""
        masks = {t: procfs.status(self.pid, t).sig_blocked for t in procfs.threads(self.pid)}
        traced = {procfs.status(self.pid, t).tracer for t in masks}
        return procfs.descriptors(self.pid), procfs.maps(self.pid), masks, traced, procfs.children(self.pid)

    def end(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.group.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for f in (self.process.stdout, self.process.stdin):
            if f is not None:
                f.close()
        self.group.remove()


Start = Callable[..., Target]


@pytest.fixture
def start(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start targets: ``start(python_code, *arguments, prefix=[], …)``, or ``start(command=[…])``."""
    criu = layout.base()
    monkeypatch.setenv("MIG_LIBEXEC", str(built))
    monkeypatch.setattr(layout, "base", lambda: criu)
    targets: list[Target] = []

    def begin(code: str = "", *arguments: str, prefix: tuple[str, ...] = (), command: list[str] | None = None, **popen: object) -> Target:
        group = Cgroup(cgroup.root() / f"mig-test-deputy-{os.getpid()}-{len(targets)}")
        # not the virtual environment's Python: others need not be able to read that
        python = os.path.realpath(sys.executable)
        targets.append(Target(command or [*prefix, python, "-c", code, *arguments], group, **popen))
        return targets[-1]

    yield begin
    for t in targets:
        t.end()


class Agent:
    """The other end of a deputy's link, blocking."""

    def __init__(self, deputy: Deputy) -> None:
        self.deputy = deputy
        self.sock: socket.socket = deputy.sock
        self.sock.settimeout(15)

    def next(self) -> link.Hello | link.Signal:
        return link.unpack(self.sock.recv(link.MAX_PACKET))

    def signal(self) -> link.Signal:
        s = self.next()
        assert isinstance(s, link.Signal)
        return s

    def quiet(self) -> bool:
        """Whether nothing has been reported; only what was surely reported by now counts."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(15)
        return False

    def exit(self, status: int) -> None:
        self.sock.send(link.exit_packet(status))

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def agent(deputy: Deputy) -> Iterator[Agent]:
    a = Agent(deputy)
    try:
        yield a
    finally:
        a.close()


def criu_dump(target: Target, directory: Path) -> None:
    """Dump a frozen target; it stays frozen."""
    directory.mkdir()
    command = [*layout.command(shim=layout.needs_shim()), "dump", "-t", str(target.pid), "-D", str(directory), "-o", "log", "-v4"]
    command += ["--freeze-cgroup", str(target.group.path), "--leave-running", "--shell-job", "--file-locks", "--manage-cgroups=ignore"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = (directory / "log").read_text(errors="replace").splitlines()
    assert done.returncode == 0, [line for line in log if "Error" in line]
    assert target.group.is_frozen()


def ended(process: subprocess.Popen[bytes]) -> int:
    """The wait status of a child of ours, as a shell would give it: 128 + n for signal n."""
    code = process.wait(15)
    return code if code >= 0 else 128 - code
