"""One request connection of a mount: its thread reads whole messages, has them done and answers each."""

from __future__ import annotations

import errno
import logging
import socket
import threading

from mig.homefs import protocol as p
from mig.homefs.credentials import Credentials, Groups
from mig.homefs.operations import AS_GUEST, AS_ROOT, Operations, Request
from mig.kernel import libc

log = logging.getLogger(__name__)


class Channel:
    """Serves one connection; :meth:`run` in a thread of its own, whose credentials and umask it changes."""

    def __init__(self, sock: socket.socket, operations: Operations, groups: Groups) -> None:
        self._sock, self._operations, self._groups = sock, operations, groups
        self._sending = threading.Lock()

    def run(self) -> None:
        """Serve until the peer closes; raises ``OSError`` when the connection breaks, ``EOFError`` when it ends within a message."""
        libc.unshare(libc.CLONE_FS)  # an umask of our own
        credentials, request = Credentials(self._groups), Request()
        buffer = memoryview(bytearray(2 * p.MAX_MESSAGE))
        have = 0
        while n := self._sock.recv_into(buffer[have:]):
            have += n
            pos = 0
            while have - pos >= p.IN_HEADER.size:
                (length,) = p.U32.unpack_from(buffer, pos)
                if not p.IN_HEADER.size <= length <= p.MAX_MESSAGE:
                    raise OSError(errno.EPROTO, f"a message of {length} bytes")
                if have - pos < length:
                    break
                self._one(buffer[pos : pos + length], request, credentials)
                pos += length
            if pos:
                buffer[: have - pos] = buffer[pos:have]
                have -= pos
        if have:
            raise EOFError("the connection ended within a message")

    def _one(self, m: memoryview, r: Request, credentials: Credentials) -> None:
        _, op, r.unique, r.node, uid, gid, r.pid, _, _ = p.IN_HEADER.unpack_from(m)
        r.body = m[p.IN_HEADER.size :]
        try:
            do = self._operations.table.get(op)
            if do is None:
                self._special(op, r, credentials)
                return
            if op in AS_GUEST:
                credentials.become(uid, gid)
            elif op in AS_ROOT:
                credentials.become(0, 0)
            try:
                reply = do(r)
            except PermissionError:
                credentials.become(0, 0)
                again = self._operations.open_to_execute(r) if op == p.OPEN else None
                if again is None:
                    raise
                reply = again
        except OSError as e:
            self._fail(r.unique, e.errno or errno.EIO)
        except Exception:  # a message that makes no sense, or a mistake of ours: this request fails, the guest goes on
            log.exception("request %d failed", op)
            self._fail(r.unique, errno.EIO)
        else:
            self._answer(r, reply)

    def _special(self, op: int, r: Request, credentials: Credentials) -> None:
        """What gets no answer, or a later one, or is not supported (the kernel then does without: ENOSYS)."""
        nodes, locks = self._operations.nodes, self._operations.locks
        if op == p.FORGET:
            nodes.forget(r.node, p.U64.unpack_from(r.body)[0])
        elif op == p.BATCH_FORGET:
            for i in range(p.U32.unpack_from(r.body)[0]):
                nodes.forget(*p.FORGET_ONE.unpack_from(r.body, 8 + i * p.FORGET_ONE.size))
        elif op == p.INTERRUPT:
            locks.interrupt(p.U64.unpack_from(r.body)[0])
        elif op == p.SETLKW:
            credentials.become(0, 0)
            unique = r.unique

            def answer(error: int) -> None:
                try:
                    self._fail(unique, error)
                except OSError:
                    pass  # the connection is gone, and the mount with it

            locks.wait(r.node, r.body, unique, answer)
        else:
            self._fail(r.unique, errno.ENOSYS)

    def _fail(self, unique: int, error: int) -> None:
        """An answer without a body: an errno, or 0."""
        with self._sending:
            self._sock.sendall(p.OUT_HEADER.pack(p.OUT_HEADER.size, -error, unique))

    def _answer(self, r: Request, reply: bytes | int) -> None:
        with self._sending:
            if isinstance(reply, int):
                n = p.OUT_HEADER.size + reply
                p.OUT_HEADER.pack_into(r.buffer, 0, n, 0, r.unique)
                self._sock.sendall(r.buffer[:n])
            else:
                self._sock.sendall(p.OUT_HEADER.pack(p.OUT_HEADER.size + len(reply), 0, r.unique) + reply)
