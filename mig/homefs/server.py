"""The server of home's files: FUSE requests of the guest's host answered out of a directory tree, as the guest, with home's own kernel.

A connection begins with a greeting: token, kind, mount id.  Connections with one mount id belong to one mount on one host: several that
carry requests (each served by a thread), and one that carries our notifications.  Node ids, file handles and locks belong to the mount;
when any of its connections ends, the mount as a whole is given up: a host that lost a part of its replies cannot go on.  Two mounts (of
two hosts, during a hop) may live side by side.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import logging
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from mig import wire
from mig.homefs import protocol as p
from mig.homefs.channel import Channel
from mig.homefs.credentials import Groups
from mig.homefs.guest import Guest, Held, Key
from mig.homefs.handles import HandleTable
from mig.homefs.locks import LockTable
from mig.homefs.names import GuestNames
from mig.homefs.nodes import NodeTable, Synthetic, Validity
from mig.homefs.operations import Operations
from mig.trust.links import Resumed
from mig.trust.strangers import Strangers

log = logging.getLogger(__name__)

GREETING_S = 10.0
"""A caller that has not greeted by then is dropped."""
GREETERS = 64
"""Callers that may be about to greet at one time; more are dropped, so that strangers cannot use up our threads."""
BARRIER_S = 5.0
"""How long a host may take to work through our notifications."""
SEND_BUFFER = 4 << 20
"""Bytes: four replies of the largest size, so that the thread goes on to the next request while the last reply is on its way."""
SO_SNDBUFFORCE = 32


class Mount:
    """One mount of one host: its tables, its connections."""

    def __init__(self, name: str, server: HomeServer) -> None:
        self.name = name
        self.nodes = NodeTable(server.root_fd, server.synthetic, server.validity, server.max_open)
        self.handles = HandleTable()
        self.locks = LockTable(name, self.nodes, self.handles, server.ancestors)
        self.operations = Operations(self.nodes, self.handles, self.locks, server.synthetic)
        self.sockets: list[socket.socket] = []
        self.notifications: socket.socket | None = None
        self._notifying = threading.Lock()

    def expire(self, validity: Validity) -> bool:
        """Have the host ask again for every name and attribute; False when it did not confirm that in time, or has no way to.

        Only EXPIRE_ONLY: a plain INVAL_ENTRY would drop the cells' mounts on top of the names.  Where the host's kernel lacks it
        (before 6.2) this waits until the last name has expired by itself.
        """
        names, nodes, last = self.nodes.trusted()
        out = self.notifications
        if out is None or not self.operations.expires_only:
            time.sleep(max(0.0, last - time.monotonic()))
            return True
        m = bytearray()
        for parent, name in names:
            size = p.OUT_HEADER.size + p.INVAL_ENTRY_OUT.size + len(name) + 1
            m += p.OUT_HEADER.pack(size, p.NOTIFY_INVAL_ENTRY, 0) + p.INVAL_ENTRY_OUT.pack(parent, len(name), p.EXPIRE_ONLY) + name + b"\0"
        for node in nodes:
            m += p.OUT_HEADER.pack(p.OUT_HEADER.size + p.INVAL_INODE_OUT.size, p.NOTIFY_INVAL_INODE, 0)
            m += p.INVAL_INODE_OUT.pack(node, -1, 0)
        m += p.OUT_HEADER.pack(p.OUT_HEADER.size, p.NOTIFY_BARRIER, 0)
        with self._notifying:
            try:
                out.settimeout(BARRIER_S)
                out.sendall(m)
                return out.recv(1) == p.BARRIER_ACK
            except OSError as e:
                log.warning("mount %s did not confirm that its names are expired: %s", self.name, e)
                return False

    def shut_down(self) -> None:
        """End all connections; their threads then see the end."""
        for s in list(self.sockets):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # already disconnected

    def close(self) -> None:
        """Release locks, open files and nodes."""
        self.locks.close()
        self.handles.close()
        self.nodes.close()


class HomeServer:
    """Serves the tree below ``root`` to callers that know ``token`` (32 bytes).  ``groups`` (uid -> gids) may be changed at any time,
    ``guest`` before a mount is made; nobody's by default.

    Needs root.  Raises the soft RLIMIT_NOFILE of the process to the hard one.
    ``locks.allow_interrupts`` must have been called in the main thread.
    """

    def __init__(
        self,
        token: bytes,
        root: str = "/",
        *,
        groups: Groups | None = None,
        validity: Validity | None = None,
        secure: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        if len(token) != p.TOKEN_SIZE:
            raise ValueError(f"the token must have {p.TOKEN_SIZE} bytes")
        self._token, self._secure = token, secure
        self.groups: Groups = {} if groups is None else groups
        self.guest = Guest()
        self.held = Held()
        self.names = GuestNames()
        self.ancestors: set[int] = set()
        self.validity = validity or Validity()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # nodes of two mounts, and as many again for open files, sockets and duplicates
        self.max_open = (hard if hard != resource.RLIM_INFINITY else 1 << 20) // 3
        self.root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.synthetic = Synthetic(self.root_fd)
        self._mounts: dict[str, Mount] = {}
        self._lock = threading.Lock()
        self._strangers = Strangers()
        self._greeting = threading.BoundedSemaphore(GREETERS)

    # -- connections -----------------------------------------------------------------------------------------------------------------

    def serve_forever(self, listener: socket.socket) -> None:
        """Accept connections, a thread each, until ``listener`` is shut down."""
        while True:
            try:
                s, peer = listener.accept()
            except OSError as e:
                if e.errno in (errno.EINVAL, errno.EBADF):  # shut down
                    return
                if e.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                raise
            if self._greeting.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(s, peer), name="homefs", daemon=True).start()
            else:
                s.close()

    def _serve(self, s: socket.socket, peer: Any) -> None:
        with contextlib.ExitStack() as held:
            held.enter_context(s)
            try:
                if self._secure is not None:
                    s = held.enter_context(self._secure(s))
                s.settimeout(GREETING_S)
                token, kind, mount_id = p.GREETING.unpack(wire.recv_exact(s, p.GREETING.size))
            except Resumed:
                log.info("%s goes on with a connection that it had", peer[0])
                return
            except (OSError, EOFError) as e:
                self._strangers.say(log, str(peer[0]), f"callers are turned away: {e or 'no greeting in time'}")
                return
            finally:
                self._greeting.release()
            if not hmac.compare_digest(token, self._token) or kind not in (p.REQUESTS, p.NOTIFICATIONS):
                self._strangers.say(log, str(peer[0]), "callers are turned away: they do not know the token")
                return
            s.settimeout(None)
            tune(s)
            name = mount_id.hex()
            mount = self._join(name, s, kind)
            try:
                s.sendall(p.ACCEPTED)
                if kind == p.REQUESTS:
                    Channel(s, mount.operations, self.groups, MountRights(self, mount, str(peer[0]))).run()
                else:
                    _await_end(s)
            except (OSError, EOFError) as e:
                log.info("a connection of mount %s ended: %s", name, e)
            finally:
                self._leave(mount, s, kind)

    def _join(self, name: str, s: socket.socket, kind: bytes) -> Mount:
        with self._lock:
            mount = self._mounts.get(name)
            if mount is None:
                mount = self._mounts[name] = Mount(name, self)
            mount.sockets.append(s)
            if kind == p.NOTIFICATIONS:
                mount.notifications = s
            return mount

    def _leave(self, mount: Mount, s: socket.socket, kind: bytes) -> None:
        with self._lock:
            mount.sockets.remove(s)
            if mount.notifications is s:
                mount.notifications = None
            # a new connection of the same name must not join what is ending
            if self._mounts.get(mount.name) is mount:
                del self._mounts[mount.name]
            last = not mount.sockets
        mount.locks.close()  # a thread of ours that waits for a lock must not get it now
        mount.shut_down()
        if last:
            mount.close()
            log.info("mount %s is gone", mount.name)

    # -- questions of the home agent ---------------------------------------------------------------------------------------------------

    def mounts(self) -> list[Mount]:
        """Those with a live connection."""
        with self._lock:
            return list(self._mounts.values())

    def expire(self) -> bool:
        """See :meth:`Mount.expire`; True when all mounts confirmed."""
        return all([m.expire(self.validity) for m in self.mounts()])

    def locks(self) -> list[dict[str, Any]]:
        """See :meth:`LockTable.list`, of all mounts."""
        return [row for m in self.mounts() for row in m.locks.list()]

    def access(self, key: Key, but: Mount | None = None) -> int | None:
        """How the guest has this file open (READS, WRITES) in its frozen original, or on a mount but that one; 0: as its working directory,
        or a name that it knows; None: not at all."""
        found = self.held.holdings().open.get(key)
        for m in self.mounts():
            if m is not but:
                known = 0 if m.nodes.knows(key) else None
                for modes in m.handles.modes(key):
                    known = (known or 0) | modes
                if known is not None:
                    found = (found or 0) | known
        return found

    def note(self, host: str, what: str) -> None:
        """A host asked for what is not its guest's: counted, and logged once a minute."""
        self._strangers.say(log, host, what)

    def close(self) -> None:
        """End all mounts; their threads release what they hold."""
        for m in self.mounts():
            m.shut_down()
        self.held.close()
        self.synthetic.close()
        os.close(self.root_fd)


class MountRights:
    """What the guest holds, as the connections of one mount ask for it: at home in the frozen original, elsewhere on its other mounts."""

    def __init__(self, server: HomeServer, mount: Mount, host: str) -> None:
        self._server, self._mount, self._host = server, mount, host

    @property
    def guest(self) -> Guest:
        """Who it is."""
        return self._server.guest

    def access(self, key: Key) -> int | None:
        """See :meth:`HomeServer.access`."""
        return self._server.access(key, self._mount)

    def holds(self, key: Key) -> bool | None:
        """True: it does; False: only on the way to what it holds; None: neither."""
        if self.access(key) is not None:
            return True
        return False if key in self._server.held.holdings().ways else None

    def refuse(self, what: str) -> None:
        """Count and log it."""
        self._server.note(self._host, what)


def tune(s: socket.socket) -> None:
    """As :func:`wire.tune`, with a large send buffer.  Plain SO_SNDBUF is capped by net.core.wmem_max and would end autotuning, so without
    CAP_NET_ADMIN the kernel's own tuning (to net.ipv4.tcp_wmem's maximum) is the better one."""
    if s.family in (socket.AF_INET, socket.AF_INET6):
        wire.tune(s)
    try:
        s.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
    except PermissionError:
        pass


def _await_end(s: socket.socket) -> None:
    """Return at the end of a connection that carries nothing from the peer but answers, which another thread reads."""
    poll = select.poll()
    poll.register(s, select.POLLRDHUP)  # not POLLIN
    poll.poll()
