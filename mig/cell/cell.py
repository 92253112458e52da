"""The keeper's side of a cell: make it, restore the guest in it, hear of the guest, end it.

Two cgroups lie under the cell's own: ``own`` for pid 1, the foster parent and the stand-ins, ``guest`` for CRIU's worker and the guest.
The worker is put into ``guest`` while the cell is prepared, so the restored tree is born there, and so is all that it forks: nothing has
to be moved in the pause or after it.  That gives

* the barrier: at the end of :meth:`Cell.restore` the keeper freezes ``guest_cgroup`` (0.1-0.4 ms).  CRIU's death would otherwise let the
  guest run, as a tracer's does; frozen it stays.  ``cgroup``, the whole cell, can be frozen as well, since none of ours has to run.
* the next move: ``guest_cgroup`` is frozen alone, pid 1 and foster parent run on.
* the end: ``cgroup.kill`` on ``cgroup`` leaves nothing.

The cell dies with the thread that called :meth:`Cell.start` (PDEATHSIG), before and after the release: the keeper owns the guest's
pipes and terminal, so the guest could not go on without it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator, Collection
from typing import Any, Self

from mig import wire
from mig.cell import init
from mig.cell.foster import MAX_PACKET, say
from mig.cell.mounts import TOOLBOX
from mig.cell.spec import CellError, CellSpec, Continued, Event, Exited, Stopped
from mig.criu import images, layout
from mig.kernel import procfs
from mig.kernel.cgroup import Cgroup

__all__ = ["Cell", "CellError", "CellSpec", "Continued", "Event", "Exited", "Stopped"]

START_TIMEOUT = 20.0
"""Seconds for all of :meth:`Cell.start`, which takes 0.1: more means that home's files do not answer."""

_GRACE = 1.0  # seconds that the process which reaps the cell's pid 1 may take


class Cell:
    """One cell.  ``init_pid``: its pid 1, as seen here.  ``tty_master``: the master of the guest's terminal, the caller's to close.

    ``cgroup``: everything in the cell.  ``guest_cgroup``: CRIU until the release, and the guest with all its processes and threads;
    ``freezer``: that directory as a dump from inside sees it.  ``guest_pid``: the guest's pid here, known after :meth:`restore`.
    """

    def __init__(self, spec: CellSpec, control: socket.socket, desk: socket.socket, middle: int, own: Cgroup, guest: Cgroup) -> None:
        self.spec = spec
        self.cgroup = Cgroup(spec.cgroup)
        self.own_cgroup = own
        self.guest_cgroup = guest
        self.freezer = f"{TOOLBOX}/cg" if spec.mode == "remote" else str(guest.path)
        self.init_pid = 0
        self.guest_pid = 0
        self.tty_master: int | None = None
        self._control = control
        self._desk = desk
        self._middle = middle
        self._pidfd = -1
        self._step = "restore"
        self._replies: asyncio.Queue[wire.Message] = asyncio.Queue()
        self._desk_replies: asyncio.Queue[wire.Message] = asyncio.Queue()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listening = False
        self._order = asyncio.Lock()

    # -- before the move -------------------------------------------------------------------------------------------------------

    @classmethod
    def start(cls, spec: CellSpec) -> Self:
        """Make the cell and wait until CRIU stands ready in it; blocking, 60-100 ms.

        Call it from the main thread, before other threads exist (it forks, and the cell dies with the calling thread).  The
        descriptors of the guest in ``spec.externals`` are taken over: closed here on return and on error.  Raises :class:`CellError`
        naming the step that failed; nothing is left then.
        """
        layout.rpc()  # imported once here, not in each process of the cell
        top = Cgroup(spec.cgroup)
        own, guest = Cgroup(top.path / "own"), Cgroup(top.path / "guest")
        try:
            own.create()
            guest.create()
            control, control_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            desk, desk_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            keeper = os.getpid()
            middle = os.fork()
            if middle == 0:
                init.run(spec, keeper, own, guest, control_far, desk_far)
        except OSError as e:
            top.remove()
            raise CellError("fork", str(e)) from e
        finally:
            for fd in set(spec.given_fds):
                os.close(fd)
        control_far.close()
        desk_far.close()
        cell = cls(spec, control, desk, middle, own, guest)
        try:
            cell._prepare()
        except BaseException:
            cell.kill()
            raise
        return cell

    def _prepare(self) -> None:
        self._control.settimeout(START_TIMEOUT)
        waiting = {"init", "worker", "pivoted"}
        while waiting:
            try:
                packet, fds, _, _ = socket.recv_fds(self._control, MAX_PACKET, 4)
            except TimeoutError as e:
                raise CellError("prepare", f"no {' and no '.join(sorted(waiting))} within {START_TIMEOUT:g} s") from e
            m: wire.Message = wire.unpack(packet) if packet else {"op": "ended"}
            match m["op"]:
                case "init":
                    self.init_pid = m["pid"]
                case "tty":
                    (self.tty_master,) = fds
                case "worker":
                    # its parent waits for nothing from it by now, and in this group the guest will be born
                    self.guest_cgroup.add(procfs.host_pid(self.own_cgroup.procs(), m["pid"]))
                case "pivoted":
                    pass
                case _:
                    raise _failure(m, "prepare")
            waiting.discard(m["op"])
        self._control.setblocking(False)
        self._desk.setblocking(False)

    def processes(self) -> list[int]:
        """Pids, here, of all that runs in the cell."""
        return [*self.own_cgroup.procs(), *self.guest_cgroup.procs()]

    # -- the move --------------------------------------------------------------------------------------------------------------

    async def restore(self, alternatives: Collection[int] = (), *, lazy: bool = False) -> None:
        """Restore the guest from the images; returns when it stands still, complete, at CRIU's ``pre-resume``.

        ``lazy``: memory that the images do not hold is served by a pager at ``lazy-pages.socket`` in the image directory.
        ``alternatives``: ids of the externals for which the guest gets ``alt_fd``.  The guest's group has the terminal again, if it had
        it at home.  Raises :class:`CellError` with CRIU's words; the cell is of no use then but to be killed.
        """
        self._listen()
        tty = self.spec.terminal
        opened = images.terminals(f"/proc/self/fd/{self.spec.img_fd}") if tty else {}
        if tty and self.spec.terminal_is_led:
            opened.pop(tty.index, "")
        keys = [key for index, key in opened.items() if tty and index in (tty.index, images.BY_ITS_ALIAS)]
        say(self._control, op="restore", alternatives=sorted(alternatives), terminals=keys, lazy=lazy)
        await self._reply("barrier")
        facts = self.spec.facts
        self.guest_pid = procfs.host_pid(self.guest_cgroup.procs(), facts.pid)
        self._pidfd = os.pidfd_open(self.guest_pid)
        if self.spec.terminal_is_led and facts.tpgid > 0:
            await self._terminal(group=facts.tpgid)

    async def release(self) -> int:
        """Let the guest run; returns its pid in the cell once CRIU has left.  The caller has thawed what it froze before.

        Raises :class:`CellError` when CRIU fails in its last steps; whether the guest ran is unknown then.
        """
        self._step = "release"
        say(self._control, op="go")
        return int((await self._reply("restored"))["pid"])

    # -- while the guest runs --------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[Event]:
        """What the guest's parent hears of it, to its end: after :class:`Exited` nothing comes.

        A cell that was killed counts as a guest ended by SIGKILL.
        """
        self._listen()
        while (e := await self._events.get()) is not None:
            yield e
            if isinstance(e, Exited):
                return
        yield Exited(signal.SIGKILL, 0.0, 0.0)

    async def set_foreground(self, on: bool) -> None:
        """The guest's side has the terminal, or has it not (then reading from it stops the guest by SIGTTIN, as at home).

        No effect without a controlling terminal, and for a guest that leads its session: there nobody else can have it.
        """
        if self.spec.terminal_is_led:
            await self._terminal(on=on)

    def set_winsize(self, winsize: bytes) -> None:
        """``struct winsize`` for the guest's terminal; SIGWINCH arises by itself."""
        if self.tty_master is not None:
            fcntl.ioctl(self.tty_master, termios.TIOCSWINSZ, winsize)

    def winsize(self) -> tuple[int, int]:
        """Rows and columns of the guest's terminal; (0, 0) without one."""
        if self.tty_master is None:
            return 0, 0
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(self.tty_master, termios.TIOCGWINSZ, bytes(8)))
        return rows, columns

    def signal(self, sig: int) -> None:
        """Send a signal to the guest; raises ``ProcessLookupError`` when it has ended."""
        signal.pidfd_send_signal(self._pidfd, sig)

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End every process of the cell, frozen or not, and remove its cgroups; idempotent.  ``tty_master`` stays open.

        Raises ``TimeoutError`` when a process does not end: one that closes a file of home's waits for home's answer, so the mount must
        be aborted first where home no longer answers.
        """
        if self._middle:
            self.cgroup.kill()
            pidfd = os.pidfd_open(self._middle)
            if not select.select([pidfd], [], [], _GRACE)[0]:  # pid 1 had not entered the cgroup yet: it dies with its parent
                os.kill(self._middle, signal.SIGKILL)
            os.close(pidfd)
            os.waitpid(self._middle, 0)
            self._middle = 0
        self.cgroup.remove()
        if self._listening:
            loop = asyncio.get_running_loop()
            for sock in (self._control, self._desk):
                if sock.fileno() >= 0:
                    loop.remove_reader(sock)
            self._replies.put_nowait({"op": "ended"})
            self._desk_replies.put_nowait({"op": "ended"})
            self._events.put_nowait(None)
        self._control.close()
        self._desk.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    # -- messages --------------------------------------------------------------------------------------------------------------

    async def _terminal(self, **order: Any) -> None:
        async with self._order:
            say(self._desk, **order)
            m = await self._desk_replies.get()
        if m["op"] != "done":
            raise _failure(m, "terminal")

    async def _reply(self, op: str) -> wire.Message:
        m = await self._replies.get()
        if m["op"] != op:
            raise _failure(m, self._step)
        return m

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            loop = asyncio.get_running_loop()
            loop.add_reader(self._control, self._readable)
            loop.add_reader(self._desk, self._desk_readable)

    def _readable(self) -> None:
        m = self._packet(self._control)
        match m["op"]:
            case "exited":
                self._events.put_nowait(Exited(m["status"], m["utime"], m["stime"]))
            case "stopped":
                self._events.put_nowait(Stopped(m["sig"]))
            case "continued":
                self._events.put_nowait(Continued())
            case "ended":
                self._events.put_nowait(None)
                self._replies.put_nowait(m)
            case _:
                self._replies.put_nowait(m)

    def _desk_readable(self) -> None:
        self._desk_replies.put_nowait(self._packet(self._desk))

    def _packet(self, sock: socket.socket) -> wire.Message:
        try:
            packet = sock.recv(MAX_PACKET)
        except ConnectionError:
            packet = b""
        if packet:
            return wire.unpack(packet)
        asyncio.get_running_loop().remove_reader(sock)
        return {"op": "ended"}


def _failure(m: wire.Message, step: str) -> CellError:
    """The error that a message other than the expected one stands for."""
    if m["op"] == "failed":
        return CellError(str(m["step"]), str(m["message"]), reasons=m["reasons"], hint=str(m["hint"]))
    return CellError(step, "the cell ended without a word" if m["op"] == "ended" else f"unexpected message {m['op']!r}")
