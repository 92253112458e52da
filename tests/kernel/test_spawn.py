"""Helpers that are executed and helpers that are forked cannot tell the difference; and no helper runs of which nobody knows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from omdiscd.nursery import Nursery

from mig.kernel import procfs

SAYS = """
import json, os, signal, sys
def main():
    fds = sorted(int(f) for f in os.listdir("/proc/self/fd"))
    out = dict(argv=sys.argv, fds=[f for f in fds if os.path.exists(f"/proc/self/fd/{f}")], pid=os.getpid(), ppid=os.getppid(),
        stdin=os.readlink("/proc/self/fd/0"), sid=os.getsid(0), pgid=os.getpgid(0), cwd=os.getcwd(), mark=os.environ.get("MARK"),
        term=signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, ended=sys.argv[2],
        title=open("/proc/self/cmdline", "rb").read().rstrip(b"\\0").split(b"\\0")[1:3] == [b"-m", b"says"])
    os.write(int(sys.argv[1]), json.dumps(out).encode())
    match sys.argv[2]:
        case "raise":
            raise ValueError("on purpose")
        case "exit":
            sys.exit("enough")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "loop":
            import asyncio
            async def life():
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGTERM, lambda: None)
                p = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
                return await p.wait()
            return asyncio.run(life())
    return 7
if __name__ == "__main__":
    sys.exit(main())
"""
PARENT = """
import asyncio, os, signal, socket, sys
from mig import spawn
spawn.prepared = sys.argv[1] == "fork"
async def life():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    others = [socket.socketpair() for _ in range(20)]
    r, w = os.pipe()
    print("before", end="")
    p = spawn.start("says", str(w), sys.argv[2], fds=[w], own_group=True)
    os.close(w)
    said = os.read(r, 65536)
    await spawn.ended(p.pid)
    assert not os.read(r, 1), "nobody else has the pipe"
    print(f"|{said.decode()}|{p.wait()}|{p.poll()}|{p.pid}", flush=True)
asyncio.run(life())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the helper ``says``, on the path of what we start."""
    (tmp_path / "says.py").write_text(SAYS)
    (tmp_path / "parent.py").write_text(PARENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("end", "status"), [("return", 7), ("raise", 1), ("exit", 1), ("kill", -9), ("loop", 5)])
def test_forked_as_executed(module: Path, end: str, status: int) -> None:
    seen = []
    for how in ("fork", "exec"):
        p = subprocess.run([sys.executable, module / "parent.py", how, end], capture_output=True, text=True, timeout=60)
        assert p.returncode == 0, p.stderr
        before, said, got, polled, pid = p.stdout.split("|")
        assert before == "before" and int(got) == int(polled) == status
        told = json.loads(said)
        assert told.pop("pid") == told.pop("pgid") == int(pid)
        assert told["argv"].pop(0).rpartition("/")[2].removesuffix(".py") == "says"
        told["fds"] = len(told["fds"])
        seen.append({k: v for k, v in told.items() if k not in ("ppid", "sid")})
        assert told["stdin"] == "/dev/null" and told["term"] and told["title"] and told["fds"] == 4
        assert ("on purpose" in p.stderr) == (end == "raise") and ("enough" in p.stderr) == (end == "exit")
    assert seen[0] == seen[1]


class Born:
    """A nursery in a loop of ours, and the statuses that it told."""

    def __init__(self) -> None:
        self.told: dict[int, int] = {}
        self.nursery = Nursery(self.told.__setitem__)

    async def ready(self) -> None:
        self.nursery.begin()
        await self.until(lambda: self.nursery._ready)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not true():
                await asyncio.sleep(0.01)

    def fork(self, end: str, log: Path, env: dict[str, str] | None = None) -> tuple[int, int, int] | None:
        """A helper: its pid, pidfd, and what it says comes out of the third."""
        r, w = os.pipe()
        with open(log, "ab") as out:
            got = self.nursery.fork("says", [str(w), end], (w,), {**os.environ, **(env or {})}, out.fileno())
        os.close(w)
        if got is None:
            os.close(r)
            return None
        return *got, r


def with_nursery(life: Callable[[Born], Awaitable[None]]) -> None:
    async def go() -> None:
        b = Born()
        try:
            await life(b)
        finally:
            b.nursery.close()

    asyncio.run(go())


def test_a_helper_of_the_nursery(module: Path, tmp_path: Path) -> None:
    async def life(b: Born) -> None:
        assert b.fork("return", tmp_path / "log") is None, "not before it has imported everything"
        await b.ready()
        for end, status in (("raise", 1), ("return", 7)):
            got = b.fork(end, tmp_path / "log", {"MARK": "x"})
            assert got is not None
            pid, pidfd, r = got
            await b.until(lambda: pid in b.told)  # noqa: B023  # run in this turn
            said = json.loads(os.read(r, 65536))
            assert b.told[pid] == status and os.read(r, 1) == b""
            assert said["pid"] == said["sid"] == pid and said["ppid"] == b.nursery.pid and said["cwd"] == "/" and said["mark"] == "x"
            assert said["title"] and said["argv"][1] == str(said["fds"][3])
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, 0)
            os.close(pidfd)
            os.close(r)
        assert "on purpose" in (tmp_path / "log").read_text()

    with_nursery(life)


def test_a_nursery_that_dies_is_replaced_and_its_helpers_live(module: Path, tmp_path: Path) -> None:
    (module / "sleeps.py").write_text("import time\ndef main(): time.sleep(1000)\n")

    async def life(b: Born) -> None:
        await b.ready()
        with open(tmp_path / "log", "ab") as out:
            got = b.nursery.fork("sleeps", [], (), dict(os.environ), out.fileno())
        assert got is not None
        pid, pidfd = got
        first = b.nursery.pid
        await b.until(lambda: b"sleeps" in procfs.cmdline(pid))
        os.kill(first, signal.SIGKILL)
        await b.until(lambda: b.nursery.pid != first)
        assert b.fork("return", tmp_path / "log") is None  # that starts the next
        await b.ready()
        after = b.fork("return", tmp_path / "log")
        assert after is not None and b.nursery.pid not in (0, first)
        os.close(after[1])
        os.close(after[2])
        assert procfs.state(pid) == "S", "a helper outlives its nursery"
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)

    with_nursery(life)


def test_a_nursery_that_hangs_starts_nothing_that_nobody_knows_of(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omdiscd.nursery.PATIENCE", 0.5)

    async def life(b: Born) -> None:
        await b.ready()
        first = b.nursery.pid
        os.kill(first, signal.SIGSTOP)
        r, w = os.pipe()
        with open(tmp_path / "log", "ab") as out:
            assert b.nursery.fork("says", [str(w), "return"], (w,), dict(os.environ), out.fileno()) is None
        os.close(w)
        assert os.read(r, 1) == b"", "it never ran"
        os.close(r)
        await b.ready()
        assert b.nursery.pid not in (0, first)

    with_nursery(life)


def test_it_ends_with_omdiscd(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        p = subprocess.Popen([sys.executable, "-m", "omdiscd.nursery", str(theirs.fileno())], pass_fds=[theirs.fileno()])
    ours.settimeout(60)
    assert json.loads(ours.recv(1000)) == {"ready": True}
    ours.close()
    assert p.wait(20) == 0
