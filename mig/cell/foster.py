"""What the processes of a cell do once they stand: the parent restores and watches the guest, the others hold their numbers.

The parent (the foster parent, or pid 1 itself) talks with the keeper over one packet socket, ``control``; the process that leads the
session obeys it over another, ``desk``, about the terminal.  They are two processes or one.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import Any, NoReturn

from mig import wire
from mig.cell import terminal
from mig.cell.spec import CellError, CellSpec
from mig.criu import options
from mig.criu.session import Worker
from mig.errors import MigError

MAX_PACKET = 1 << 16


def say(sock: socket.socket, *fds: int, **m: Any) -> None:
    """One packet, one message, with descriptors."""
    packet = wire.pack(m)[4:]  # packets have a length of their own
    if fds:
        socket.send_fds(sock, [packet], fds)
    else:
        sock.send(packet)


def hear(sock: socket.socket) -> wire.Message:
    """The next packet; raises ``EOFError`` when the other side is gone."""
    packet = sock.recv(MAX_PACKET)
    if not packet:
        raise EOFError("the other side is gone")
    return wire.unpack(packet)


def report(sock: socket.socket, step: str, e: Exception) -> None:
    """Tell the keeper that ``step`` failed."""
    error = e if isinstance(e, MigError) else CellError(step, f"{type(e).__name__}: {e}" if not isinstance(e, OSError) else str(e))
    say(sock, op="failed", step=getattr(e, "step", step), **error.to_wire())


def restore(spec: CellSpec, worker: Worker, slave: int, control: socket.socket, desk: Desk | None) -> None:
    """Wait for the word, restore, stand at the barrier until the next word, and let the guest go.  Raises what CRIU says.

    Nothing here has to run while the keeper holds the guest's cgroup frozen, in which CRIU and the guest are.
    """
    word = wait(control, desk)
    req = options.restore(spec.img_fd, lazy=word["lazy"])
    inherited = [(g.external.key, g.alt_fd if g.external.id in word["alternatives"] else g.fd) for g in spec.pipes]
    # CRIU's stdin serves only a terminal whose session is led from outside: by name it also becomes the guest's controlling one
    inherited += [(key, slave) for key in word["terminals"]]
    for key, fd in inherited:
        inherit = req.opts.inherit_fd.add()
        inherit.key, inherit.fd = key, fd

    def notify(name: str, _pid: int) -> bool:
        if name == "pre-resume":  # CRIU and the guest stand still until we answer
            say(control, op="barrier")
            wait(control, desk)
        return True

    resp = worker.call(req, notify)
    worker.close()  # ends it: from now on the guest's cgroup holds the guest alone
    say(control, op="restored", pid=resp.restore.pid)


class Desk:
    """The terminal's side of the keeper's orders."""

    def __init__(self, sock: socket.socket, foreground: terminal.Foreground) -> None:
        self.sock = sock
        self._foreground = foreground

    def serve_one(self) -> None:
        """Obey one order and say how it went; raises ``EOFError`` when there will be no more."""
        m = hear(self.sock)
        try:
            if "group" in m:
                self._foreground.give(m["group"])
            else:
                self._foreground.switch(m["on"])
        except OSError as e:
            report(self.sock, "terminal", e)
        else:
            say(self.sock, op="done")


def wait(control: socket.socket, desk: Desk | None) -> wire.Message:
    """The keeper's next word on ``control``, obeying orders for the terminal meanwhile."""
    while desk is not None:
        ready, _, _ = select.select([control, desk.sock], [], [])
        if control in ready:
            break
        desk.serve_one()
    return hear(control)


def attend(guest: int, control: socket.socket, desk: Desk | None) -> NoReturn:
    """Reap for ever, telling the keeper what becomes of ``guest`` if it is our child; obey orders for the terminal."""
    bell, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    while True:
        _reap(guest, control)
        sources: list[int | socket.socket] = [bell, *([desk.sock] if desk is not None else [])]
        ready, _, _ = select.select(sources, [], [])
        if bell in ready:
            os.read(bell, 4096)
        if desk is not None and desk.sock in ready:
            try:
                desk.serve_one()
            except EOFError:  # the keeper ends; the cell is killed with it
                desk = None


def _reap(guest: int, control: socket.socket) -> None:
    while True:
        try:
            pid, status, used = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid != guest:
            continue
        try:
            if os.WIFSTOPPED(status):
                say(control, op="stopped", sig=os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                say(control, op="continued")
            else:
                say(control, op="exited", status=status, utime=used.ru_utime, stime=used.ru_stime)
        except ConnectionError:  # the keeper is gone: nobody is left to be told
            return
