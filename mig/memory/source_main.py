"""``python -m mig.memory.source_main CONTROL LISTENER``: the page source of one move, a helper of the agent or keeper that is its source.

It keeps nothing that could be lost with it: the memory is in the frozen process (read by descriptors of its /proc/PID/mem that pin the
address space, whatever the process execs meanwhile), what has arrived is known to the pager, and the listener is its parent's, which
starts another when this one dies.

Messages from the parent on CONTROL (a stream, see :mod:`mig.wire`): ``layout`` with descriptors, ``track``, ``rounds``; answers ``done``.
To the parent: ``all`` when the pager has everything, ``lost`` when the memory cannot be read any more.
"""

from __future__ import annotations

import hmac
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from mig import logs, wire
from mig.kernel import libc, pagemap
from mig.memory import frames, precopy
from mig.memory.frames import PAGE, Kind, Range
from mig.memory.ranges import subtract
from mig.memory.sender import Sender
from mig.memory.todo import Todo
from mig.migration import faults
from mig.migration.faults import Fault
from mig.trust import links

log = logging.getLogger(__name__)

SILENCE = 10
"""Seconds after which a silent connection is given up; the pager makes another."""
SEND_BUFFER = 64 << 10
"""Bytes that may wait in the kernel: a demanded page waits behind them."""
_ZERO = bytes(PAGE)


class MemoryLost(Exception):
    """The process whose memory we serve is gone."""


class Memory:
    """One process's: descriptors of its mem and pagemap, the hidden ranges, and pages as they were before its exit changed them."""

    def __init__(self, mem: int, maps: int, ranges: list[tuple[int, int]], saved: dict[int, bytes]) -> None:
        self.mem, self.maps, self.ranges, self.saved = mem, maps, ranges, saved

    def read(self, addr: int, length: int) -> bytes:
        """Raises :class:`MemoryLost`."""
        try:
            b = os.pread(self.mem, length, addr)
        except OSError as e:
            raise MemoryLost(f"{length} bytes at {addr:#x} cannot be read: {e}") from e
        if len(b) != length:
            raise MemoryLost(f"its memory is gone ({len(b)} of {length} bytes at {addr:#x})")
        for at, page in self.saved.items():
            if addr <= at < addr + length:
                b = b[: at - addr] + page + b[at - addr + PAGE :]
        return b

    def close(self) -> None:
        """Let go."""
        os.close(self.mem)
        os.close(self.maps)


class PageSource:
    """Serves the memory of one frozen tree."""

    def __init__(self, control: socket.socket, listener: socket.socket, token: bytes) -> None:
        self.control, self.listener, self.token = control, listener, token
        self.memories: dict[int, Memory] = {}
        self.tracker: precopy.Tracker = precopy.NoTracking()
        self.todo = Todo(())
        self.lock = threading.Lock()
        self.ready = threading.Event()
        self.marked = threading.Event()
        self.current: list[Range] = []
        self.marked_on: socket.socket | None = None
        self.push_conn: socket.socket | None = None
        self.sender: Sender | None = None
        self.connected = threading.Event()
        self.sent = 0
        self.zeros = 0
        self.ended = False

    def run(self) -> None:
        """Until the parent closes the control socket."""
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            try:
                m = wire.recv(self.control)
            except (EOFError, OSError):
                os._exit(0)
            match m["op"]:
                case "layout":
                    self._layout(m)
                    self._say("done")
                case "saved":
                    for process, addr, page in m["pages"]:
                        self.memories[int(process)].saved[int(addr)] = bytes(page)
                    self._say("done")
                case "rounds":
                    processes = [precopy.Process(int(i), int(p), [(int(a), int(b)) for a, b in r]) for i, p, r in m["processes"]]
                    threading.Thread(target=self._rounds, args=(processes, m), daemon=True).start()
                case "stop":
                    self.tracker.stop()

    def _say(self, op: str, **m: Any) -> None:
        with self.lock:
            wire.send(self.control, op=op, **m)

    # -- before the freeze -----------------------------------------------------------------------------------------------------

    def _rounds(self, processes: list[precopy.Process], m: dict[str, Any]) -> None:
        try:
            if not self.connected.wait(10):
                raise OSError("the destination's pager has not connected")
            self.tracker = precopy.start(processes, self, limit_bps=int(m["limit_bps"]), max_rounds=int(m["max_rounds"]))
            done = self.tracker.rounds()
        except OSError as e:
            self._say("failed", error=str(e))
        else:
            self._say("done", rounds=done.rounds, wire=done.wire, bytes=done.bytes, why=getattr(self.tracker, "why", ""))

    def store(self, index: int, addr: int, contents: memoryview) -> int:
        """As :class:`mig.memory.precopy.Sink`."""
        if self.sender is None:
            raise OSError("the connection to the destination's pager is lost")
        return self.sender.send(Kind.STORE, index, addr, contents)

    # -- from the freeze on ----------------------------------------------------------------------------------------------------

    def _layout(self, m: dict[str, Any]) -> None:
        """What is hidden, with two descriptors for each process."""
        processes = m["processes"]
        fds: list[int] = []
        while len(fds) < 2 * len(processes):
            _, some, _, _ = socket.recv_fds(self.control, 1, 64)
            fds += some
        for n, (index, ranges) in enumerate(processes):
            known = [(int(a), int(b)) for a, b in ranges]
            self.memories[int(index)] = Memory(fds[2 * n], fds[2 * n + 1], known, {int(a): bytes(p) for a, p in m["saved"].get(index, ())})
        self.processes = [precopy.Process(int(i), int(p), self.memories[int(i)].ranges) for i, p in m["pids"]]
        self.ready.set()
        threading.Thread(target=self._mark, daemon=True).start()

    def _mark(self) -> None:
        """Beside the restore: what the store has is current, so that the first faults find it there."""
        s = self.push_conn
        try:
            self.current = self.tracker.current(self.processes)
            if s is not None:
                for r in self.current:
                    self._note(s, Kind.STORED, r.process, r.start, r.end)
                self.marked_on = s
        except OSError:
            pass  # the connection is made again, and it is told there
        finally:
            self.marked.set()

    def _everything(self) -> list[Range]:
        return [Range(i, a, b) for i, m in self.memories.items() for a, b in m.ranges]

    def _accept(self) -> None:
        while True:
            s, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(s,), daemon=True).start()

    def _serve(self, s: socket.socket) -> None:
        try:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            s, _ = links.answer(s, dead_after=SILENCE)
            s.settimeout(10)
            hello = wire.recv(s)
            token = hello.get("token")
            if not isinstance(token, bytes) or not hmac.compare_digest(token, self.token):
                raise wire.WireError("wrong token")
            s.settimeout(None)
            if hello.get("role") == "push":
                s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                old, self.push_conn, self.sender = self.push_conn, s, Sender(s)
                if old is not None:
                    _shut(old)  # its pager is dead, and its guardian holds the connection open
                self.connected.set()
                self._push(s)
            else:
                self._demand(s)
        except MemoryLost as e:
            self._lost(str(e))
        except (OSError, EOFError) as e:
            log.info("a connection of the pager's ended: %s", e or type(e).__name__)
        finally:
            if self.push_conn is s:
                self.push_conn = self.sender = None
            s.close()

    def _lost(self, why: str) -> None:
        if not self.ended:
            log.error("%s", why)
            self._say("lost", why=why)

    def _demand(self, s: socket.socket) -> None:
        """Pages that somebody waits for: as they are, at once, one by one."""
        while True:
            addr, index = frames.REQUEST.unpack(wire.recv_exact(s, frames.REQUEST.size))
            self.ready.wait()
            memory = self.memories.get(index)
            if memory is None or addr % PAGE or not any(a <= addr < b for a, b in memory.ranges):
                raise wire.WireError(f"a page was asked for that is not ours: {addr:#x} of process {index}")
            page = memory.read(addr, PAGE)
            with self.lock:
                self.todo.fault(index, addr, PAGE)
            if page == _ZERO:
                s.sendall(frames.note(Kind.ZERO, index, addr, addr + PAGE))
            else:
                s.sendall(frames.data(Kind.DATA, index, addr, PAGE) + page)
                self.sent += PAGE

    def _push(self, s: socket.socket) -> None:
        """All the others, from the moment on that the pager wants them."""
        while True:
            m = wire.recv(s)
            if m.get("op") == "all":
                self._all(m)
                return
            if m.get("op") == "push":
                break
        self.ready.wait()
        began = time.monotonic()
        missing = m.get("missing")
        wanted = [Range(int(i), int(a), int(b)) for i, a, b in missing] if missing is not None else self._everything()
        self._announce(s, wanted, first=missing is None)
        todo = self.todo
        sender = self.sender if self.sender is not None and self.sender.sock is s else Sender(s)
        half = todo.bytes // 2
        while (r := self._take(todo)) is not None:
            self._send_pages(s, sender, r)
            if half and faults.enabled and todo.bytes < half:
                faults.pass_by(Fault.MID_POSTCOPY)
                half = 0
            if _readable(s):
                break  # a last word: the guest has ended
        else:
            s.sendall(frames.note(Kind.ALL))
        m = wire.recv(s)
        log.info("everything sent in %.2f s: %d bytes, %d of zeros", time.monotonic() - began, self.sent, self.zeros)
        self._all(m)

    def _take(self, todo: Todo) -> Range | None:
        with self.lock:
            return todo.take()

    def _announce(self, s: socket.socket, wanted: list[Range], *, first: bool) -> None:
        """What need not be sent: pages that hold nothing, and what the store has already."""
        self.marked.wait()
        current = self.current if first else []
        full: list[Range] = []
        for r in wanted:
            at = r.start
            for a, b in pagemap.contents(self.memories[r.process].maps, r.start, r.end):
                if a > at:
                    self._note(s, Kind.ZERO, r.process, at, a)
                full.append(Range(r.process, a, b))
                at = b
            if at < r.end:
                self._note(s, Kind.ZERO, r.process, at, r.end)
        for r in current if self.marked_on is not s else ():
            self._note(s, Kind.STORED, r.process, r.start, r.end)
        rest: list[Range] = []
        for index in self.memories:
            here = subtract(
                [(r.start, r.end) for r in full if r.process == index], [(r.start, r.end) for r in current if r.process == index]
            )
            rest += [Range(index, a, b) for a, b in here]
        with self.lock:
            self.todo = Todo(rest, self.tracker.hot())

    def _note(self, s: socket.socket, kind: Kind, index: int, start: int, end: int) -> None:
        if kind is Kind.ZERO:
            self.zeros += end - start
        s.sendall(frames.note(kind, index, start, end))

    def _send_pages(self, s: socket.socket, sender: Sender, r: Range) -> None:
        contents = self.memories[r.process].read(r.start, r.end - r.start)
        at = 0
        while at < len(contents):
            zero = contents[at : at + PAGE] == _ZERO
            end = at + PAGE
            while end < len(contents) and (contents[end : end + PAGE] == _ZERO) == zero:
                end += PAGE
            if zero:
                self._note(s, Kind.ZERO, r.process, r.start + at, r.start + end)
            else:
                self.sent += sender.send(Kind.DATA, r.process, r.start + at, memoryview(contents)[at:end])
            at = end

    def _all(self, m: dict[str, Any]) -> None:
        if m.get("op") != "all":
            raise wire.WireError(f"the pager said {m.get('op')!r}")
        self.ended = True
        self._say("all", bytes=self.sent, zeros=self.zeros, **{k: v for k, v in m.items() if k != "op"})


def _shut(s: socket.socket) -> None:
    try:
        s.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed by its own thread


def _readable(s: socket.socket) -> bool:
    try:
        return bool(s.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def main() -> None:
    """Serve until the parent has had enough."""
    logs.to_stderr(who="page source")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    libc.pdeathsig()
    faults.enabled = os.environ.get("MIG_FAULTS") == "1"
    control = socket.socket(fileno=int(sys.argv[1]))
    listener = socket.socket(fileno=int(sys.argv[2]))
    listener.setblocking(True)
    hello = wire.recv(control)
    links.start()
    PageSource(control, listener, bytes(hello["token"])).run()


if __name__ == "__main__":
    main()
