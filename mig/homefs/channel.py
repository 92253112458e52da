"""One request connection of a mount: its thread reads whole messages, has them done and answers each."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from typing import Protocol

from mig.homefs import protocol as p
from mig.homefs.credentials import Credentials, Groups
from mig.homefs.guest import Guest, Key
from mig.homefs.operations import AS_GUEST, AS_ROOT, Operations, Request
from mig.kernel import libc

log = logging.getLogger(__name__)


class Rights(Protocol):
    """What the server knows of the guest beyond its ids."""

    @property
    def guest(self) -> Guest: ...
    def access(self, key: Key) -> int | None: ...
    def holds(self, key: Key) -> bool | None: ...
    def refuse(self, what: str) -> None: ...


class Channel:
    """Serves one connection; :meth:`run` in a thread of its own, whose credentials and umask it changes."""

    def __init__(self, sock: socket.socket, operations: Operations, groups: Groups, rights: Rights) -> None:
        self._sock, self._operations, self._groups, self._rights = sock, operations, groups, rights
        self._guest = rights.guest
        self._sending = threading.Lock()

    def run(self) -> None:
        """Serve until the peer closes; raises ``OSError`` when the connection breaks, ``EOFError`` when it ends within a message."""
        libc.unshare(libc.CLONE_FS)  # an umask of our own
        credentials, request = Credentials(self._groups, self._guest), Request()
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
                who = self._guest.act_as(uid, gid)
                if who is None:
                    self._rights.refuse(f"asks for home's files as user {uid}, group {gid}, which the guest is not")
                    raise PermissionError(errno.EACCES, "not the guest")
                credentials.become(*who)
            elif op in AS_ROOT:
                credentials.become(0, 0)
            try:
                reply = do(r)
            except PermissionError:
                beyond = self._beyond(op, r, uid, credentials)
                if beyond is None:
                    raise
                reply = beyond
        except OSError as e:
            self._fail(r.unique, e.errno or errno.EIO)
        except Exception:  # a message that makes no sense, or a mistake of ours: this request fails, the guest goes on
            log.exception("request %d failed", op)
            self._fail(r.unique, errno.EIO)
        else:
            self._answer(r, reply)

    def _beyond(self, op: int, r: Request, uid: int, credentials: Credentials) -> bytes | None:
        """What the guest may not do by itself: a program to be executed, and what its host opens again because the guest holds it."""
        o, rights = self._operations, self._rights
        own = r.node in o.nodes.by_id and not o.nodes.by_id[r.node].lent
        if op == p.OPEN and own and o.may_execute(r):
            credentials.become(0, 0)
            return o.open_to_execute(r)
        if self._guest.privileged or uid != 0:
            return None
        credentials.become(0, 0)
        out = None
        if op == p.LOOKUP:
            out = o.nodes.lend(r.node, p.name_at(r.body), rights.holds)
        elif op == p.OPEN:
            out = o.open_held(r, rights.access)
        elif op == p.OPENDIR:
            out = o.open_held_directory(r, rights.access)
        if out is None and op not in (p.GETXATTR, p.LISTXATTR):
            rights.refuse("asks as root for more of home's files than the guest may")
        return out

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
