"""The making of a cell, from inside: what the keeper forks becomes pid 1 and its cast of stand-ins.

::

    keeper ── middle (unshares, waits) ── init, pid 1 (enters the cgroup, mounts, changes the root, reaps)
                                                        └─ leader, pid = home's session ── parent, pid = home's parent ── CRIU, guest
                                                                                                └─ leaders of process groups

Leader and parent may be one process, or init itself.  Is the parent pid 1 and the leader another, then the leader forks CRIU with
``CLONE_PARENT``: in the leader's session, but init's child, as the guest will be.

Everything needed later is imported by now: after the change of root, imports would come from another machine's files.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import termios
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from mig import paths
from mig.cell import family, foster, mounts, processes, terminal
from mig.cell.family import Family
from mig.cell.foster import Desk, report, say
from mig.cell.processes import fork_as
from mig.cell.spec import CellSpec
from mig.cell.worker import Launch
from mig.criu.session import Worker
from mig.kernel import libc
from mig.kernel.cgroup import Cgroup

INIT = 1


def run(spec: CellSpec, keeper: int, own: Cgroup, guest: Cgroup, control: socket.socket, desk: socket.socket) -> NoReturn:
    """The life of the forked process; never returns into the keeper's stack."""
    try:
        libc.pdeathsig()
        if os.getppid() == keeper:  # else it died before we could ask to die with it
            _middle(spec, own, guest, control, desk)
    finally:
        os._exit(1)


def _middle(spec: CellSpec, own: Cgroup, guest: Cgroup, control: socket.socket, desk: socket.socket) -> None:
    step = "namespaces"
    try:
        _close_others(spec, control, desk)
        os.setsid()
        os.chdir("/")  # pivot_root moves only those that stand at the old root
        remote = libc.CLONE_NEWUTS | libc.CLONE_NEWIPC if spec.mode == "remote" else 0
        libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWPID | remote)
        # At home too, with no difference: a thread frozen inside the vdso of a time namespace is in the middle of reading a page that
        # only processes of time namespaces have, and would get SIGBUS elsewhere.  The other way round the vdso notices and starts again.
        _home_time(spec.clocks if spec.mode == "remote" else (0, 0))
        alive, never = os.pipe()
        pid = os.fork()
        if pid:
            os.close(alive)
            say(control, op="init", pid=pid)
            for fd in (control.fileno(), desk.fileno(), spec.img_fd, *spec.given_fds):
                os.close(fd)  # our copies would hide that all others are gone
            os.waitpid(pid, 0)
            os._exit(0)
        libc.pdeathsig()
        os.close(never)
        if select.select([alive], [], [], 0)[0]:
            os._exit(1)  # the middle, whose parent's pid says nothing in here, is gone already
        os.close(alive)
        own.add(0)  # ourselves; not the middle, which survives a kill of the cell by the moment that it takes to reap us
        libc.set_name(paths.CELL)
        step = "setup"
        Init(spec, guest.path, control, desk).run()
    except Exception as e:
        report(control, step, e)


def _home_time(ahead: tuple[int, int]) -> None:
    """Monotonic and boot clock of what is forked from now on are home's; a kernel without time namespaces goes on with its own."""
    offsets = Path("/proc/self/timens_offsets")
    if offsets.exists():
        libc.unshare(libc.CLONE_NEWTIME)
        lines = [f"{clock} {ns // 10**9} {ns % 10**9}\n" for clock, ns in zip(("monotonic", "boottime"), ahead, strict=True)]
        offsets.write_text("".join(lines))


def _close_others(spec: CellSpec, control: socket.socket, desk: socket.socket) -> None:
    """A descriptor of the keeper's that stays open here is one whose other side never sees it end."""
    keep = {0, 1, 2, control.fileno(), desk.fileno(), spec.img_fd}
    keep |= set(spec.given_fds)
    edges = sorted(keep)
    for a, b in zip(edges, [*edges[1:], 1 << 32], strict=True):
        if b - a > 1:
            libc.close_range(a + 1, b - 1)


class Init:
    """Pid 1 of the cell, and, in forked copies, the stand-ins."""

    def __init__(self, spec: CellSpec, guest_cgroup: Path, control: socket.socket, desk: socket.socket) -> None:
        self.spec = spec
        self.guest_cgroup = guest_cgroup
        self.control = control
        self.desk_sock = desk
        self.desk: Desk | None = None
        self.launch: Launch | None = None
        self.slave = -1
        self.root = ""
        self.step = "setup"

    def run(self) -> None:
        """Set the cell up and serve; returns only by an exception, which it reports itself."""
        try:
            self._run()
        except Exception as e:
            report(self.control, self.step, e)

    def _run(self) -> None:
        spec = self.spec
        processes.deaf()
        self.step = "mounts"
        if spec.mode == "remote" and spec.facts.hostname:
            socket.sethostname(spec.facts.hostname)
        self.root = mounts.furnish(spec, self.guest_cgroup)
        self.step = "terminal"
        if spec.terminal is not None:
            master = terminal.make(self.root, spec.terminal, spec.facts.uid)
            say(self.control, master, op="tty")
            os.close(master)
            self.slave = terminal.open_slave(self.root, spec.terminal.index)
        self.step = "family"
        cast = family.plan(spec.facts, int(Path("/proc/sys/kernel/pid_max").read_text()))
        ready, up = os.pipe()
        self._cast(cast, up)
        self.step = "CRIU"
        worker = self._await(cast, ready, up)
        self.step = "root"
        if spec.mode == "remote":
            mounts.enter(self.root)
        say(self.control, op="pivoted")
        self.step = "restore"
        if worker is not None:
            foster.restore(spec, worker, self.slave, self.control, self.desk)
        self._let_go()
        foster.attend(spec.facts.pid, self.control, self.desk)

    # -- the cast --------------------------------------------------------------------------------------------------------------

    def _cast(self, cast: Family, up: int) -> None:
        """Fork leader and parent, as far as init is not that itself; they fork the rest."""
        if cast.parent == INIT:
            self.launch = Launch(str(self.spec.criu_dir), cast.worker, cast.group)
        if cast.leader == INIT:
            self._lead(cast)
        if cast.host == INIT:
            assert self.launch is not None  # the parent is init, or it would be the host
            self._stand_ins(cast.stand_ins)
            self._start_worker(self.launch, sibling=False)
        elif cast.leader in (0, INIT, cast.parent):
            self._fork(cast.parent, lambda: self._be_parent(cast, up))
        else:
            self._fork(cast.leader, lambda: self._be_leader(cast, up))

    def _fork(self, pid: int, life: Callable[[], None]) -> None:
        if fork_as(pid) == 0:
            try:
                life()
            except Exception as e:
                report(self.control, self.step, e)
            finally:
                os._exit(1)

    def _lead(self, cast: Family) -> None:
        """Become the session's leader, and the owner of its terminal."""
        os.setsid()
        if self.spec.terminal_is_led:
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
            self.desk = Desk(self.desk_sock, terminal.Foreground(self.slave, self.spec.facts.pgid, cast.background))

    def _be_leader(self, cast: Family, up: int) -> None:
        """A leader that is not the parent."""
        self._lead(cast)
        if cast.parent != INIT:
            self._fork(cast.parent, lambda: self._be_parent(cast, up))
        else:
            assert self.launch is not None  # init's
            self._stand_ins(cast.stand_ins)
            self._start_worker(self.launch, sibling=True)
            self.launch.drop()
            os.write(up, b"1")
        os.close(up)
        self._let_go()
        foster.attend(0, self.control, self.desk)

    def _be_parent(self, cast: Family, up: int) -> None:
        """The foster parent."""
        libc.set_name("mig-foster")
        if cast.leader == cast.parent:
            self._lead(cast)
        else:
            self.desk = None
        if cast.leads_group and cast.leader != cast.parent:
            os.setpgid(0, 0)
        self._stand_ins(cast.stand_ins)
        if cast.joins:
            os.setpgid(0, cast.joins)
        self.step = "CRIU"
        launch = Launch(str(self.spec.criu_dir), cast.worker, cast.group)
        self._start_worker(launch, sibling=False)
        worker = launch.worker()
        say(self.control, op="worker", pid=cast.worker)
        os.write(up, b"1")
        os.close(up)
        self.step = "restore"
        foster.restore(self.spec, worker, self.slave, self.control, self.desk)
        self._let_go()
        foster.attend(self.spec.facts.pid, self.control, self.desk)

    def _stand_ins(self, pids: Iterable[int]) -> None:
        for pid in pids:
            processes.stand_in(pid)

    def _start_worker(self, launch: Launch, *, sibling: bool) -> None:
        pass_fds = self.spec.given_fds
        if self.slave >= 0:
            pass_fds.append(self.slave)
        launch.fork(sibling=sibling, stdin=self.slave, pass_fds=pass_fds)

    def _await(self, cast: Family, ready: int, up: int) -> Worker | None:
        """Until CRIU stands ready; the worker, if it is ours."""
        os.close(up)
        if cast.host != INIT and os.read(ready, 1) != b"1":
            os._exit(1)  # whoever should have written has told the keeper why not
        os.close(ready)
        if self.launch is None:
            return None
        worker = self.launch.worker()
        say(self.control, op="worker", pid=cast.worker)
        return worker

    def _let_go(self) -> None:
        """The ends of the guest's pipes: EOF and SIGPIPE must arise when the guest closes its own."""
        for fd in (*self.spec.given_fds, self.spec.img_fd):
            os.close(fd)
