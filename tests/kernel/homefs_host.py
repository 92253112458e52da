"""A home and its hosts for the tests of home's files: each a process in a mount namespace of its own, where snippets of Python can run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mig import wire
from mig.homefs.guest import Guest

REPO = str(Path(__file__).parents[2])

ENTER = """
import ctypes, errno, fcntl, mmap, os, stat, struct, subprocess, sys, time
sys.path.insert(0, {repo!r})
from mig.kernel import libc
ns = os.open("/proc/{pid}/ns/mnt", os.O_RDONLY)
libc.setns(ns, libc.CLONE_NEWNS)
os.close(ns)
D = {here!r}
def say(x): print(x, flush=True)
def fails(call, *args, **kw):
    try: call(*args, **kw)
    except OSError as e: return errno.errorcode[e.errno]
    raise AssertionError("no error")
os.chdir(D)
"""
HOME = """
import os, resource, sys
from mig.kernel import libc
libc.unshare(libc.CLONE_NEWNS)
libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
libc.mount("tmpfs", sys.argv[1] + "/small", "tmpfs", 0, "size=1m")
if nofile := int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
os.execv(sys.executable, [sys.executable, "-m", "mig.agent.fileserver", "--bare", "--listen", "127.0.0.1", *sys.argv[3:]])
"""
HOST = """
import os, sys
from mig.homefs import mount
from mig.kernel import libc
port, token, mount_id, where = int(sys.argv[1]), *map(bytes.fromhex, sys.argv[2:4]), sys.argv[4]
libc.unshare(libc.CLONE_NEWNS)
libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
m = mount.FuseMount(where, *mount.connect("127.0.0.1", port, token, mount_id=mount_id))
print(*m.pids, flush=True)
sys.stdin.read()
m.close()
"""


class Snippet(subprocess.Popen[str]):
    """A running snippet, spoken to line by line."""

    def line(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.stdin is not None
        self.stdin.write("\n")
        self.stdin.flush()

    def end(self) -> None:
        """Let it end, and check that it did well."""
        _, err = self.communicate("\n", timeout=30)
        assert self.returncode == 0, err


class Place:
    """A process with a mount namespace, in which the test's directory is seen at ``here``."""

    def __init__(self, pid: int, here: str) -> None:
        self.pid, self.here = pid, here

    def start(self, code: str, **kw: Any) -> Snippet:
        source = ENTER.format(repo=REPO, pid=self.pid, here=self.here) + textwrap.dedent(code)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Snippet([sys.executable, "-c", source], text=True, **{**pipes, **kw})

    def run(self, code: str, timeout: float = 30) -> str:
        """The snippet's output; an assertion in it fails the test."""
        s = self.start(code)
        try:
            out, err = s.communicate(timeout=timeout)
        finally:
            if s.returncode is None:
                s.kill()
                s.wait()
        assert s.returncode == 0, err
        return out.strip()


class Host(Place):
    """A host with home's files mounted."""

    def __init__(self, home: Home, mount_id: str) -> None:
        self.mount_id = mount_id
        self.root = tempfile.mkdtemp(prefix="mig-homefs-host-")
        args = [sys.executable, "-c", HOST, str(home.port), home.token.hex(), mount_id, self.root]
        self.proc = subprocess.Popen(args, cwd=REPO, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.proc.stdout is not None
        self.pumps = [int(p) for p in self.proc.stdout.readline().split()]
        super().__init__(self.proc.pid, self.root + home.here)

    def end(self) -> None:
        assert self.proc.stdin is not None and self.proc.stdout is not None
        self.proc.stdin.close()
        self.proc.wait(10)
        self.proc.stdout.close()
        os.rmdir(self.root)


class Home(Place):
    """The file server of a guest at home, and its control connection."""

    def __init__(self, nofile: int = 0) -> None:
        """``nofile``: the server's RLIMIT_NOFILE, where it matters."""
        self.token = os.urandom(32)
        here = tempfile.mkdtemp(prefix="mig-homefs-home-")
        os.chmod(here, 0o755)
        os.mkdir(here + "/small")
        self.control, theirs = socket.socketpair()
        self.control.settimeout(30)
        r, w = os.pipe()
        os.write(w, self.token)
        os.close(w)
        fds = {"--token-fd": r, "--control-fd": theirs.fileno()}
        args = [sys.executable, "-c", HOME, here, str(nofile), *(str(x) for kv in fds.items() for x in kv)]
        self.log = Path(f"{here}/log")
        with self.log.open("wb") as log:
            self.proc = subprocess.Popen(args, cwd=REPO, pass_fds=list(fds.values()), stderr=log)
        os.close(r)
        theirs.close()
        self.port = wire.recv(self.control)["port"]
        self.ask("guest", guest=Guest(privileged=True).to_map())
        self.hosts: list[Host] = []
        super().__init__(self.proc.pid, here)

    def host(self) -> Host:
        """One more host that mounts our files."""
        self.hosts.append(Host(self, os.urandom(16).hex()))
        return self.hosts[-1]

    def ask(self, op: str, **args: Any) -> wire.Message:
        wire.send(self.control, op=op, **args)
        return wire.recv(self.control)

    def end(self) -> None:
        for h in self.hosts:
            h.end()
        if self.proc.poll() is None:
            assert self.ask("quit") == {"op": "bye"}
            assert self.proc.wait(10) == 0
        self.control.close()
        print(self.log.read_text(), file=sys.stderr)
        shutil.rmtree(self.here)


@pytest.fixture
def home() -> Iterator[Home]:
    h = Home()
    try:
        yield h
    finally:
        h.end()


@pytest.fixture
def host(home: Home) -> Host:
    return home.host()


def stop(snippet: Snippet) -> None:
    """End a snippet that hangs on purpose."""
    snippet.send_signal(signal.SIGKILL)
    snippet.communicate(timeout=10)
