"""What the CRIU tests share: a small guest in a cgroup of its own, frozen, dumped and restored on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mig.criu import layout, options
from mig.criu.session import Worker
from mig.kernel import cgroup

SOCKET_OPTIONS = dict.fromkeys(("so_sndbuf", "so_rcvbuf", *(f"so_{d}_tmo_{u}" for d in ("snd", "rcv") for u in ("sec", "usec"))), 0)
"""What an image says of every socket."""


def until(true: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Wait for something that must come; fails with its name."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"waited {timeout} s for: {what}"
        time.sleep(0.01)


class Guest:
    """``criu_guest MODE`` with its output in a file, a session of its own, and a cgroup that can be frozen."""

    def __init__(self, program: Path, work: Path, mode: str, **popen: Any) -> None:
        self.program, self.out, self.images = program, work / "out", work / "img"
        self.images.mkdir()
        self.img_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
        self.group = cgroup.Cgroup(cgroup.root() / f"mig-test-criu-{os.getpid()}-{mode}")
        self.group.create()
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [program, mode], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True, **popen
            )
        self.pid = self.process.pid
        self.group.add(self.pid)
        until(self.lines, f"{mode} ready")
        self.restored = False

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    def dump(self, *, shim: bool | None = None) -> None:
        """Freeze and dump with a worker in this process."""
        worker = Worker.start(shim=layout.needs_shim() if shim is None else shim)
        try:
            self.group.freeze()
            worker.call(options.dump(self.pid, self.img_fd, str(self.group.path)))
        finally:
            worker.close()

    def end(self) -> None:
        """Kill the original, so that its pid is free."""
        self.group.kill()
        self.process.wait()

    def restore(self, notify: Callable[[str, int], bool | None] | None = None) -> None:
        """Bring it back under its pid, as a child of this process."""
        worker = Worker.start()
        try:
            answer = worker.call(options.restore(self.img_fd), notify)
        finally:
            worker.close()
        self.restored = True
        assert answer.restore.pid == self.pid

    def close(self) -> None:
        self.end()
        if self.restored:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.group.remove()
        os.close(self.img_fd)


Start = Callable[..., Guest]


@contextlib.contextmanager
def guests(work: Path) -> Iterator[Start]:
    """Gives ``start(MODE)``, which returns a guest that is in place; nothing is left of them afterwards."""
    program = work / "criu_guest"
    subprocess.run(["gcc", "-O1", "-Wall", "-o", program, Path(__file__).with_name("criu_guest.c")], check=True)
    for d in (work, *work.parents[:2]):
        d.chmod(0o755)  # pytest's directories are root's alone, some guests run as another user
    begun: list[Guest] = []

    def start(mode: str, **popen: Any) -> Guest:
        begun.append(Guest(program, work, mode, **popen))
        return begun[-1]

    try:
        yield start
    finally:
        for g in begun:
            g.close()
