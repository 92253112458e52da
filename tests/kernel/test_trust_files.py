"""Home's files over an encrypted connection: the relay reads /dev/fuse itself, and everything ends when one of its ends does."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mig import paths, wire
from mig.homefs.guest import Guest
from mig.trust import links, store

HOST = """
import os, sys
from pathlib import Path
from mig import paths
paths.TRUST = Path(sys.argv[1])
from mig.homefs import mount
from mig.kernel import libc
from mig.trust import links
libc.unshare(libc.CLONE_NEWNS)
libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
port, token = int(sys.argv[3]), bytes.fromhex(sys.argv[4])
m = mount.FuseMount(sys.argv[2], *mount.connect("127.0.0.1", port, token, dial=lambda a, p: links.dial(1, a, p)))
print("mounted", links.pid(), flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
m.close()
"""
SERVER = """
import sys
from pathlib import Path
from mig import paths
paths.TRUST = Path(sys.argv.pop(1))
from mig.agent import fileserver
fileserver.main()
"""


class Pool:
    """A file server and a host that has mounted it."""

    def __init__(self, base: Path) -> None:
        self.home, self.at = base / "home", base / "at"
        self.home.mkdir()
        self.at.mkdir()
        (self.home / "big").write_bytes(os.urandom(1 << 20) * 5)
        token, (ours, theirs) = os.urandom(32), socket.socketpair()
        r, w = os.pipe()
        os.write(w, token)
        os.close(w)
        arguments = ["--listen", "127.0.0.1", "--token-fd", str(r), "--control-fd", str(theirs.fileno()), "--root", str(self.home)]
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(paths.TRUST), *arguments], pass_fds=[r, theirs.fileno()], stderr=subprocess.DEVNULL
        )
        os.close(r)
        theirs.close()
        self.control = ours
        port = wire.recv(ours)["port"]
        wire.send(ours, op="guest", guest=Guest(privileged=True).to_map())
        assert wire.recv(ours)["op"] == "guest"
        self.host = subprocess.Popen(
            [sys.executable, "-c", HOST, str(paths.TRUST), str(self.at), str(port), token.hex()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        said, relay = self.line().split()
        assert said == "mounted"
        self.relay = int(relay)

    def line(self) -> str:
        assert self.host.stdout is not None
        return self.host.stdout.readline().strip()

    def ask(self, expression: str) -> Any:
        """What the host sees."""
        assert self.host.stdin is not None
        self.host.stdin.write(expression + "\n")
        return eval(self.line())

    def close(self) -> None:
        assert self.host.stdin is not None and self.host.stdout is not None
        self.host.stdin.close()
        self.host.wait(10)
        self.host.stdout.close()
        self.control.close()
        self.server.wait(10)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(paths, "TRUST", tmp_path / "trust")
    monkeypatch.setattr(links, "_store", None)
    links.known().write([(1, "n1", store.make_identity())])
    p = Pool(tmp_path)
    yield p
    p.close()


def gone(pid: int) -> bool:
    try:
        return "zombie" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_files_are_read_written_and_made(pool: Pool) -> None:
    digest = f"repr(__import__('hashlib').sha256(open({str(pool.at / 'big')!r}, 'rb').read()).hexdigest())"
    assert pool.ask(digest) == hashlib.sha256((pool.home / "big").read_bytes()).hexdigest()
    assert pool.ask(f"open({str(pool.at / 'new')!r}, 'wb').write(b'x' * 3000000)") == 3000000
    assert pool.ask(f"os.system('cd {pool.at} && mkdir d && for i in $(seq 200); do echo $i > d/$i; done; cat d/* > all; sync')") == 0
    assert (pool.home / "new").stat().st_size == 3000000 and len((pool.home / "all").read_text().split()) == 200


@pytest.mark.parametrize("end", ["relay", "server"])
def test_everything_fails_when_one_end_is_gone(pool: Pool, end: str) -> None:
    assert pool.ask(f"os.path.exists({str(pool.at / 'big')!r})") is True
    os.kill(pool.relay if end == "relay" else pool.server.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while pool.ask(f"os.path.exists({str(pool.at / 'never-asked')!r}) or os.path.exists({str(pool.at / 'big')!r})"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_relay_ends_with_a_host_that_was_killed(pool: Pool) -> None:
    pool.host.kill()
    deadline = time.monotonic() + 10
    while not gone(pool.relay):
        assert time.monotonic() < deadline
        time.sleep(0.02)
