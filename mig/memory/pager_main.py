"""``python -m mig.memory.pager_main CONTROL``: the pager's process, started by the keeper before the cell.

The first message on CONTROL says everything: ``socket`` (CRIU's lazy-pages.socket, made here), ``cell`` (its cgroup), ``keeper``, and of
the source ``node`` (its id), ``addr``, ``port``, ``token``; one that takes over from a dead pager is told ``adopt``: a ``guardian``, the
number there of the event ``log``, the ``processes`` of the layout, and whether the guest runs (``pushing``).

Then ``layout``, ``push``, ``whole``, ``placed``, ``end``.  To the keeper: ``connected`` or ``failed``, ``restored`` (every process has its
userfaultfd), ``forked`` (there is another), ``whole`` (all is here, if not in its place: the keeper answers likewise, then the source is
told), each second ``missing`` (bytes, and for how many seconds the source has been ``silent``), ``placed`` (nothing is missing: the keeper
answers likewise when it has let go), ``all``, ``lost`` (the source is gone, or a page).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mig import logs, wire
from mig.kernel import libc
from mig.memory import guardian
from mig.memory.eventlog import EventLog
from mig.memory.pager import Pager
from mig.memory.turns import Turns
from mig.migration import faults
from mig.migration.faults import Fault, InjectedFault
from mig.trust import links

log = logging.getLogger(__name__)

SILENCE = 10
"""Seconds after which a silent connection is given up and made anew."""
REFUSED = 3.0
"""Seconds of refused connections after which the source is gone: its machine answers, and nobody listens."""
REFUSED_ELSEWHERE = 30.0
"""The same where the source's node has another address by now: it opens its port there when it has noticed."""
RETRY = 0.25
LATE = 60.0
"""Seconds in which a source that cannot be reached is told that its memory is not needed any more."""


async def _connect(node: int, addr: str, port: int, token: bytes) -> tuple[socket.socket, socket.socket]:
    pair = []
    for role in ("demand", "push"):
        s = await links.connect(node, addr, port, timeout=5, dead_after=SILENCE)
        await wire.asend(s, token=token, role=role)
        pair.append(s)
    return pair[0], pair[1]


def _layout(processes: list[Any]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    return [(int(i), int(p), [(int(a), int(b)) for a, b in ranges]) for i, p, ranges in processes]


class Process:
    """The pager, its connections and its messages."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.start: dict[str, Any] = wire.recv(control)
        self.cell = Path(str(self.start["cell"]))
        self.guards: dict[int, int] = {}  # pid by pidfd
        self.pairs: queue.SimpleQueue[tuple[socket.socket, socket.socket] | str] = queue.SimpleQueue()
        self.gone = False  # the source, and we do not need it
        self.placed = self.released = False
        self.bell, self.ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until everything has arrived, or the keeper says that it is of no use any more."""
        adopt = self.start.get("adopt")
        listener = None if adopt else socket.socket(socket.AF_UNIX)
        events = EventLog()
        pager = Pager(listener, self.say, self._reconnect, events)
        pair = None
        try:
            if not (adopt and adopt["whole"]):
                pair = self._first_pair()
            if listener is not None:
                listener.bind(str(self.start["socket"]))
                listener.listen(1)
            if adopt:
                pager.guest.layout(_layout(adopt["processes"]))
                old = EventLog(libc.pidfd_getfd(int(adopt["guardian"]), int(adopt["log"])))
                pager.take_over(int(adopt["guardian"]), old, whole=bool(adopt["whole"]))
            while len(self.guards) < guardian.COUNT:
                self._guard()
        except (OSError, EOFError, KeyError) as e:
            self.say("failed", error=str(e) or type(e).__name__)
            return
        if pair is not None:
            pager.connected(*pair)
        else:
            self._reconnect()  # it may not have been told yet that it is not needed any more
        for fd in self.guards:
            pager.poll.register(fd, select.EPOLLIN)
        self.say("connected", guardians=list(self.guards.values()), log=events.fd)
        if adopt and adopt["pushing"]:
            pager.start_push(again=True)
        try:
            self._loop(pager)
        except (OSError, EOFError, InjectedFault):
            log.exception("the pager fails; the guardian holds the guest's memory")
            os._exit(1)
        for fd in self.guards:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)

    def _guard(self) -> int:
        """Have another guardian; its pidfd."""
        pid = guardian.start(int(self.start["keeper"]), self.cell)
        fd = os.pidfd_open(pid)
        self.guards[fd] = pid
        return fd

    def _guard_again(self, pager: Pager, fd: int) -> None:
        """One of ours died: another at once."""
        fresh = self._guard()
        pager.poll.register(fresh, select.EPOLLIN)
        pager.poll.unregister(fd)
        os.close(fd)
        os.waitpid(self.guards.pop(fd), 0)
        log.warning("a guardian died; %d is another", self.guards[fresh])
        self.say("guardians", pids=list(self.guards.values()))

    def _first_pair(self) -> tuple[socket.socket, socket.socket]:
        s = self.start
        return asyncio.run(_connect(int(s["node"]), self._addr(), int(s["port"]), bytes(s["token"])))

    def _addr(self) -> str:
        """Where the source's node is now."""
        return links.addresses().of(int(self.start["node"])) or str(self.start["addr"])

    def say(self, op: str, **m: Any) -> None:
        """To the keeper, which notices by itself when we end; that it has ended is the guardian's business."""
        with contextlib.suppress(OSError):
            wire.send(self.control, op=op, **m)

    def _loop(self, pager: Pager) -> None:
        pager.poll.register(self.control, select.EPOLLIN)
        pager.poll.register(self.bell, select.EPOLLIN)
        reported = 0.0
        half, whole, turns = 0, pager.whole, Turns()
        while not (pager.finished() and self._released(pager)):
            fds = [fd for fd, _ in pager.poll.poll(1.0 if pager.idle else turns.rest())]
            if self.control.fileno() in fds and not self._obey(pager):
                guardian.end(self.cell)  # the keeper died: nothing may run any more when the userfaultfds are closed
                return
            for fd in [fd for fd in fds if fd in self.guards]:
                self._guard_again(pager, fd)
            if self.bell in fds:
                os.read(self.bell, 64)
                self._reconnected(pager)
            pager.step(fds)
            half = half or (pager.missing // 2 if faults.enabled and pager.pushing else 0)
            if half and pager.missing < half:
                faults.pass_by(Fault.MID_POSTCOPY)
                half = -1
            if pager.whole and not whole and faults.enabled:
                faults.pass_by(Fault.BEFORE_PLACED)
            whole = pager.whole
            if pager.pushing and time.monotonic() - reported > 1:
                reported = time.monotonic()
                self.say("missing", bytes=pager.missing, silent=pager.silent)
        pager.finish()
        self._linger(pager)

    def _released(self, pager: Pager) -> bool:
        """Everything is in its place: whether the keeper has let go of its duplicates.  Until then new pages are served as before."""
        if not self.placed:
            self.placed = True
            self.say("placed")
        return self.released or pager.over

    def _obey(self, pager: Pager) -> bool:
        try:
            m = wire.recv(self.control)
        except (EOFError, OSError):
            return False
        match m["op"]:
            case "layout":
                pager.guest.layout(_layout(m["processes"]))
                self.say("laid-out")
            case "push":
                pager.start_push()
            case "whole":
                if not pager.release_source():
                    self._reconnect()
            case "placed":
                self.released = True
            case "end":
                pager.over = True
        return True

    def _linger(self, pager: Pager) -> None:
        """The source's last frames are read and dropped, so that our last word is not lost with a reset connection."""
        s = pager.push.sock if pager.push is not None and pager.released else self._again(pager)
        if s is None:
            return
        s.settimeout(5)
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_WR)
            while s.recv(1 << 20):
                pass

    def _again(self, pager: Pager) -> socket.socket | None:
        """The connection was lost when everything had come: the source is told on another one, if it is still there."""
        if pager.released:
            return None
        pair: tuple[socket.socket, socket.socket] | str = ""
        with contextlib.suppress(queue.Empty):
            pair = "" if self.gone else self.pairs.get(timeout=LATE)
        if isinstance(pair, str):
            return None
        pager.release_source(pair[1])
        return pair[1]

    # -- connections -----------------------------------------------------------------------------------------------------------

    def _reconnect(self) -> None:
        threading.Thread(target=self._keep_trying, daemon=True).start()

    def _keep_trying(self) -> None:
        refused = 0.0
        while True:
            try:
                self.pairs.put(self._first_pair())
                break
            except ConnectionRefusedError:
                refused = refused or time.monotonic()
                if time.monotonic() - refused > (REFUSED if self._addr() == self.start["addr"] else REFUSED_ELSEWHERE):
                    self.pairs.put("nobody serves its memory any more")
                    break
            except (OSError, EOFError, TimeoutError) as e:
                refused = 0.0
                log.info("the page source cannot be reached: %s", e or type(e).__name__)
            time.sleep(RETRY)
        os.write(self.ring, b"x")

    def _reconnected(self, pager: Pager) -> None:
        while not self.pairs.empty():
            match self.pairs.get():
                case str(why) if pager.whole:
                    log.info("%s, and all of it is here", why)
                    self.gone = True
                case str(why):
                    self.say("lost", why=why)
                case pair if pager.whole:
                    pager.release_source(pair[1])
                    for s in pair:
                        s.close()
                case pair:
                    log.info("connected to the page source again, %d bytes are missing", pager.missing)
                    pager.connected(*pair)


def main() -> None:
    """Run one pager."""
    logs.to_stderr(who="pager")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    libc.set_name("mig-pager")
    faults.enabled = os.environ.get("MIG_FAULTS") == "1"
    Process(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
