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
from typing import Any, NamedTuple

from mig import logs, wire
from mig.kernel import libc, pagemap
from mig.memory import frames, precopy
from mig.memory.fingerprints import Fingerprints
from mig.memory.frames import CHUNK, PAGE, Kind, Range
from mig.memory.push import WIDEST
from mig.memory.pusher import Memory, MemoryLost, Pusher
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
SWITCH = 0.0002
"""Seconds for which one thread may keep the others of this process waiting: a demanded page needs its turn three times."""
_ZERO = bytes(PAGE)


class Store:
    """The destination's page store, as one connection fills it.  What is known of it is true of this connection alone: what was sent on one
    that broke may never have come."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender

    def store(self, index: int, addr: int, contents: memoryview) -> int:
        """As :class:`mig.memory.precopy.Sink`."""
        return self.sender.send(Kind.STORE, index, addr, contents)


class Plan(NamedTuple):
    """What has to be told of and to be sent after the resume: pages that hold nothing, and all that the destination has not."""

    empty: list[Range]
    todo: Todo


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
        self.current: list[Range] = []  # of the store, told to the destination
        self.plan: Plan | None = None  # for the connection that filled the store
        self.filled: Store | None = None
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
            if (sender := self.sender) is None:
                raise OSError("the connection to the destination's pager is lost")
            self.filled = Store(sender)
            self.tracker = precopy.start(
                processes,
                self.filled,
                limit_bps=int(m["limit_bps"]),
                max_rounds=int(m["max_rounds"]),
                to_the_end=bool(m["to_the_end"]),
            )
            done = self.tracker.rounds()
        except OSError as e:
            self._say("failed", error=str(e))
        except Exception as e:  # whoever waits for us must not wait for ever
            log.exception("pre-copy")
            self._say("failed", error=f"{type(e).__name__}: {e}")
        else:
            self._say("done", rounds=done.rounds, wire=done.wire, bytes=done.bytes, why=self.tracker.why)

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
        """Beside the restore: what the store has is current, so that the first faults find it there; and what will be sent in which
        order, which takes a tenth of a second where the memory is in many pieces."""
        try:
            if self.filled is not None:
                current = self.tracker.current(self.processes)
                push = Pusher(self.filled.sender, self.tracker.known, self.memories)
                for r in current:
                    push.note(Kind.STORED, r.process, r.start, r.end)
                push.flush()
                self.current = current
                self.plan = self._planned(self._everything(), current)
        except OSError:
            pass  # that connection is broken, and what it carried does not count
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
                self.todo.fault(index, addr)
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
        sender = self.sender if self.sender is not None and self.sender.sock is s else Sender(s)
        filled = self.filled is not None and self.filled.sender is sender
        push = Pusher(sender, self.tracker.known if filled else Fingerprints(), self.memories)
        self._announce(push, wanted, filled=filled)
        todo = self.todo
        try:
            self._push_all(push, todo)
            m = wire.recv(s)
        finally:
            self.sent, self.zeros = self.sent + push.bytes, self.zeros + push.zeros
        log.info("everything sent in %.2f s: %d bytes, %d of zeros", time.monotonic() - began, self.sent, self.zeros)
        self._all(m)

    def _push_all(self, push: Pusher, todo: Todo) -> None:
        half, size = todo.bytes // 2, CHUNK
        while chunk := self._take(todo, size):
            size = CHUNK if push.send(chunk) else min(2 * size, WIDEST)  # nothing that a demanded page could have to wait behind
            if half and faults.enabled and todo.bytes < half:
                faults.pass_by(Fault.MID_POSTCOPY)
                half = 0
            if _readable(push.sender.sock):
                return  # a last word: the guest has ended
        push.note(Kind.ALL)
        push.flush()

    def _take(self, todo: Todo, size: int) -> list[Range]:
        with self.lock:
            return todo.take(size)

    def _announce(self, push: Pusher, wanted: list[Range], *, filled: bool) -> None:
        """What need not be sent: pages that hold nothing, and what the store has already.  ``filled``: on this connection."""
        self.marked.wait()
        plan, self.plan = self.plan, None
        if plan is None or not filled or wanted != self._everything():
            plan = self._planned(wanted, self.current if filled else [])
        for r in plan.empty:
            push.note(Kind.ZERO, r.process, r.start, r.end)
        push.flush()
        with self.lock:
            self.todo = plan.todo

    def _planned(self, wanted: list[Range], current: list[Range]) -> Plan:
        empty: list[Range] = []
        rest: list[Range] = []
        for index, m in self.memories.items():
            ranges = [(r.start, r.end) for r in wanted if r.process == index]
            full = [piece for start, end in ranges for piece in pagemap.contents(m.maps, start, end)]
            empty += [Range(index, a, b) for a, b in subtract(ranges, full)]
            rest += [Range(index, a, b) for a, b in subtract(full, [(r.start, r.end) for r in current if r.process == index])]
        return Plan(empty, Todo(rest, self.tracker.hot()))

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
    sys.setswitchinterval(SWITCH)
    hello = wire.recv(control)
    links.start()
    PageSource(control, listener, bytes(hello["token"])).run()


if __name__ == "__main__":
    main()
