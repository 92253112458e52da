"""What the tests of cells share: a process at home, its dump, and cells that it is moved into one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mig import wire
from mig.criu import layout
from mig.criu.dumper import Dumper
from mig.errors import MigError
from mig.kernel import cgroup, libc, procfs
from mig.kernel.cgroup import Cgroup
from mig.model import External, ProcessFacts

HERE = Path(__file__).parent
TOP = HERE.parents[1]
PYTHON = next(p for p in ("/usr/bin/python3", sys.executable) if os.path.exists(p))
"""One that every user can run."""


def make_kdat(at: Path) -> None:
    """CRIU's cache of what the kernel can do, made as on a node: ``criu check`` with /run on a tmpfs."""
    script = 'mount -t tmpfs none /run && { "$@" check >/dev/null 2>&1; cp /run/criu.kdat "$0"; }'
    subprocess.run(["unshare", "-m", "sh", "-c", script, str(at), *layout.command()], check=True)


def until(true: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    """Wait for something that must come; fails with its name."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"waited {timeout} s for: {what}"
        time.sleep(0.005)


def read_line(fd: int, timeout: float = 10.0) -> bytes:
    """A line, byte by byte, so that nothing of the next is taken."""
    line, end = b"", time.monotonic() + timeout
    os.set_blocking(fd, False)
    while not line.endswith(b"\n"):
        try:
            b = os.read(fd, 1)
        except BlockingIOError:
            assert time.monotonic() < end, f"no line within {timeout} s, only {line!r}"
            time.sleep(0.002)
            continue
        assert b, f"end of file after {line!r}"
        line += b
    return line


def read_answer(fd: int) -> dict[str, Any]:
    """The next line that is an answer; a terminal also shows the orders."""
    while True:
        _, brace, rest = read_line(fd).partition(b"{")
        if brace:
            answer: dict[str, Any] = json.loads(brace + rest)
            return answer


def facts_of(pid: int, **changed: Any) -> ProcessFacts:
    """The facts that a cell needs, from the outside."""
    st = procfs.stat(pid)
    tree = procfs.tree(pid)
    status = procfs.status(pid)
    facts = ProcessFacts(
        pid=pid, start=st.start, boot="", comm=st.comm, uid=status.uids[0], gid=status.gids[0], ppid=st.ppid, pgid=st.pgid, sid=st.sid,
        tty_nr=st.tty_nr, tpgid=st.tpgid, tree=tree, tids=[t for p in tree for t in procfs.threads(p)], hostname="cell-home",
        externals=externals(pid),
    )  # fmt: skip
    return dataclasses.replace(facts, **changed)


def externals(pid: int) -> list[External]:
    """Pipes and the terminal among the descriptors of ``pid``."""
    found: dict[str, External] = {}
    for d in procfs.descriptors(pid).values():
        if d.target.startswith("pipe:"):
            way = "w" if d.flags & os.O_ACCMODE else "r"
            found.setdefault(d.target + way, External(len(found), "pipe", d.target, way))
        elif d.target.startswith("/dev/pts/"):
            fd = libc.pidfd_getfd(pid, d.fd)
            size = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
            index = int(d.target.rsplit("/", 1)[1])
            found.setdefault("tty", External(len(found), "tty", "tty", "rw", index=index, termios=termios.tcgetattr(fd), winsize=size))
            os.close(fd)
    return list(found.values())


class Home:
    """A process at home, and the wires to it: ``orders`` to write to, ``answers`` to read from."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.group = Cgroup(cgroup.root() / f"mig-test-cell-{os.getpid()}-home")
        self.group.create()
        self.program = Path(shutil.copy(HERE / "cell_guest.py", work))
        for d in (work, *work.parents[:2]):
            d.chmod(0o755)  # pytest's directories are root's alone
        self.pid = 0
        self.orders = self.answers = -1
        self.top: subprocess.Popen[bytes] | None = None
        self.top_pid = 0

    def by_pipes(self, *args: str, shell: str = "", uid: int = 0, **popen: Any) -> int:
        """Start the guest with pipes; ``shell``: by this command line of bash, which says ``"$@"`` for the guest's."""
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        argv = [PYTHON, str(self.program), "0", "1", *args]
        if shell:
            argv = ["bash", "-c", shell, "home", *argv]
        self.top = subprocess.Popen(argv, stdin=orders, stdout=answers, stderr=subprocess.DEVNULL, user=uid, group=uid, cwd="/usr", **popen)
        os.close(orders)
        os.close(answers)
        return self._up()

    def by_terminal(self, *args: str, line: str = "GUEST", leader: bool = False) -> int:
        """Start the guest at a terminal: by this ``line`` typed to an interactive bash, or itself as the session's ``leader``.

        In the line ``GUEST`` stands for the guest's command; the terminal is its descriptor 0.  Without it: :meth:`type_guest` later.
        """
        command = [PYTHON, str(self.program), "0", "1", *args]
        self.top_pid, master = pty.fork()
        if self.top_pid == 0:
            try:
                libc.close_range(3)
                os.chdir("/usr")
                if leader:
                    os.execv(command[0], command)
                os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, "PS1": "$ ", "HISTFILE": ""})
            finally:
                os._exit(127)
        self.orders = self.answers = master
        if not leader:
            os.write(master, line.replace("GUEST", " ".join(command)).encode() + b"\n")
        return self._up() if leader or "GUEST" in line else 0

    def type_guest(self) -> int:
        """Start the guest by a line at the terminal, whoever reads it."""
        os.write(self.orders, f"{PYTHON} {self.program} 0 1\n".encode())
        return self._up()

    def take_parent(self) -> None:
        """The parent of the process that answers is the one to be moved."""
        self.pid = procfs.stat(self.pid).ppid
        self.group.add(self.pid)

    def _up(self) -> int:
        self.pid = int(read_answer(self.answers)["ready"])
        self.group.add(self.pid)
        for p in procfs.tree(self.pid):
            self.group.add(p)
        return self.pid

    def ask(self, order: str) -> dict[str, Any]:
        """An order and its answer."""
        os.write(self.orders, order.encode() + b"\n")
        return read_answer(self.answers)

    async def dump(self, img: Path) -> None:
        """Freeze and dump; it stays frozen."""
        await dump(img, self.pid, self.group, str(self.group.path), None)

    def close(self) -> None:
        """End everything at home."""
        top = self.top.pid if self.top is not None else self.top_pid
        with contextlib.suppress(ProcessLookupError):
            for p in procfs.tree(top):
                self.group.add(p)
        self.group.kill()
        if self.top is not None:
            self.top.kill()
            self.top.wait()
        if self.top_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.top_pid, signal.SIGKILL)
            os.waitpid(self.top_pid, 0)
        self.group.remove()
        for fd in {self.orders, self.answers} - {-1}:
            os.close(fd)


async def dump(img: Path, pid: int, group: Cgroup, seen_as: str, cell_init: int | None) -> None:
    """Freeze and dump into a directory."""
    fd = os.open(img, os.O_RDONLY | os.O_DIRECTORY)
    dumper = await Dumper.start(fd, cell_init=cell_init)
    try:
        group.freeze()
        await dumper.dump(pid, seen_as)
    finally:
        await dumper.close()
        os.close(fd)


class Remote:
    """One cell and its keeper, a process of its own."""

    count = 0

    def __init__(self, work: Path, kdat: Path, facts: ProcessFacts, img: Path, mode: str) -> None:
        Remote.count += 1
        self.work = work / f"cell{Remote.count}"
        self.work.mkdir()
        self.facts = facts
        self.cgroup = Cgroup(cgroup.root() / f"mig-test-cell-{os.getpid()}-{Remote.count}")
        self.sock, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.kernel.cell_keeper", str(far.fileno())], pass_fds=[far.fileno()], cwd=TOP
            )
        self.events: list[dict[str, Any]] = []
        self.fds: dict[str, int] = {}
        self.sock.settimeout(30)
        self._send(
            op="start",
            work=str(self.work),
            kdat=str(kdat),
            facts=dataclasses.asdict(facts),
            img=str(img),
            mode=mode,
            cgroup=str(self.cgroup.path),
        )
        try:
            self.hello = self._answer("started")
        except BaseException:
            self.close()
            raise
        self.guest_cgroup = Cgroup(self.hello["guest_cgroup"])
        self.pid = facts.pid

    def _send(self, **m: Any) -> None:
        self.sock.send(wire.pack(m)[4:])

    def _answer(self, op: str) -> dict[str, Any]:
        while True:
            packet, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)
            m = wire.unpack(packet) if packet else {"op": "eof"}
            if m["op"] == op:
                keys = [e.key for e in self.facts.externals if e.kind == "pipe"] + ["tty"]
                self.fds |= dict(zip(keys, fds, strict=False))
                return m
            if m["op"] == "failed":
                raise MigError.from_wire(m)
            assert packet, "the keeper ended"
            self.events.append(m)

    def tell(self, op: str, **m: Any) -> dict[str, Any]:
        """An order to the keeper."""
        self._send(op=op, **m)
        return self._answer("done")

    def run(self) -> None:
        """All of a restore."""
        self.tell("restore")
        self.tell("freeze")
        self.tell("go")

    def event(self, op: str) -> dict[str, Any]:
        """The next event, which must be ``op``."""
        if self.events:
            m = self.events.pop(0)
            assert m["op"] == op
            return m
        return self._answer(op)

    @property
    def orders(self) -> int:
        """Where the guest's orders go in."""
        if "tty" in self.fds:
            return self.fds["tty"]
        return next(self.fds[e.key] for e in self.facts.externals if e.kind == "pipe" and e.dir == "r")

    @property
    def answers(self) -> int:
        """Where its answers come out."""
        if "tty" in self.fds:
            return self.fds["tty"]
        return next(self.fds[e.key] for e in self.facts.externals if e.kind == "pipe" and e.dir == "w")

    def ask(self, order: str) -> dict[str, Any]:
        """An order to the guest and its answer."""
        os.write(self.orders, order.encode() + b"\n")
        return read_answer(self.answers)

    def facts_now(self) -> ProcessFacts:
        """The facts for the next move: the pipes have other names in this cell."""
        host_pid = procfs.host_pid(self.guest_cgroup.procs(), self.pid)
        now = [procfs.descriptor(host_pid, fd) for fd in procfs.descriptors(host_pid)]
        pipes = {("w" if d.flags & os.O_ACCMODE else "r"): d.target for d in now if d.target.startswith("pipe:")}
        moved = [dataclasses.replace(e, key=pipes[e.dir]) if e.kind == "pipe" else e for e in self.facts.externals]
        members = [procfs.status(p) for p in self.guest_cgroup.procs()]
        return dataclasses.replace(self.facts, externals=moved, tree=[s.nspid[-1] for s in members])

    async def dump(self, img: Path) -> None:
        """Freeze the guest alone, dump it from inside."""
        await dump(img, self.pid, self.guest_cgroup, self.hello["freezer"], self.hello["init"])

    def close(self) -> None:
        """End the cell; nothing may be left of it."""
        self.sock.close()
        try:
            if self.process.wait(20) == -signal.SIGKILL:  # by the test: nobody was left to do it
                self.cgroup.remove()
            else:
                assert self.process.returncode == 0
        finally:
            for fd in self.fds.values():
                os.close(fd)
            shutil.rmtree(self.work)
        assert not self.cgroup.exists()


class Lab:
    """Home and the cells of one test."""

    def __init__(self, work: Path, kdat: Path) -> None:
        self.work, self.kdat = work, kdat
        self.home = Home(work)
        self.cells: list[Remote] = []

    def cell(self, facts: ProcessFacts, img: Path, mode: str = "remote") -> Remote:
        """Make a cell; closed with the lab."""
        self.cells.append(Remote(self.work, self.kdat, facts, img, mode))
        return self.cells[-1]

    async def prepare(self, **changed: Any) -> Remote:
        """A cell for home's process; ``changed``: facts that are to be other than they are."""
        return self.cell(facts_of(self.home.pid, **changed), self._images())

    async def leave_home(self, **changed: Any) -> Remote:
        """Prepare a cell, freeze and dump home's process, restore it in the cell."""
        cell = await self.prepare(**changed)
        await self.home.dump(self.img)
        cell.run()
        return cell

    async def move_on(self, source: Remote, mode: str = "remote") -> Remote:
        """From one cell into the next."""
        cell = self.cell(source.facts_now(), self._images(), mode)
        await source.dump(self.img)
        cell.run()
        return cell

    def _images(self) -> Path:
        self.img = self.work / f"img{len(self.cells)}"
        self.img.mkdir()
        return self.img

    def close(self) -> None:
        """End all."""
        for c in self.cells:
            c.close()
        self.home.close()


@contextlib.asynccontextmanager
async def lab(work: Path, kdat: Path) -> AsyncIterator[Lab]:
    """A lab for one test."""
    it = Lab(work, kdat)
    try:
        yield it
    finally:
        it.close()
        await asyncio.sleep(0)
