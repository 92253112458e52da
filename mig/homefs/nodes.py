"""The files that one mount knows: node ids of the protocol, each with an ``O_PATH`` descriptor at home, counted as the host counts them."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mig.homefs import protocol as p

ROOT_ID = 1
PINNED = 1 << 60
"""A lookup count that no FORGET brings down."""
S = 10**9


def pack_attr(st: os.stat_result) -> bytes:
    """struct fuse_attr."""
    a, m, c = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
    return p.ATTR.pack(
        st.st_ino, st.st_size, st.st_blocks, a // S, m // S, c // S, a % S, m % S, c % S,
        st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_rdev & 0xFFFFFFFF, st.st_blksize, 0,
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class Node:
    """One inode of home as one mount sees it.  The descriptor keeps the inode alive, so that its number is not given to another file."""

    id: int
    fd: int  # -1: closed to save descriptors, opened again by name when needed
    key: tuple[int, int]  # st_dev, st_ino
    parent: int
    name: bytes
    lookups: int = 1
    handles: int = 0  # open files: they pin the descriptor
    version: tuple[int, int, int] | None = None  # mtime, ctime, size at the last open: what the host's page cache stands for
    attrs_until: float = 0.0  # monotonic: until then the host may trust attributes that we granted
    used: int = 0
    lent: bool = False  # only on the way to what the guest holds: it may not be used by itself


@dataclass(slots=True)
class Validity:
    """Seconds for which the host may trust names and attributes without asking again."""

    entry_s: float = 1.0
    attr_s: float = 1.0
    _entry: tuple[int, int] = field(init=False)
    _attr: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._entry, self._attr = (divmod(int(s * S), S) for s in (self.entry_s, self.attr_s))

    def entry(self, node: int, st: os.stat_result) -> bytes:
        """struct fuse_entry_out."""
        (es, en), (as_, an) = self._entry, self._attr
        return p.ENTRY_OUT.pack(node, 0, es, as_, en, an) + pack_attr(st)

    def attributes(self, st: os.stat_result) -> bytes:
        """struct fuse_attr_out."""
        return p.ATTR_OUT.pack(*self._attr, 0) + pack_attr(st)


class Synthetic:
    """Names that exist only for the guest's host, which mounts its own things on them: an empty directory and an empty file.

    Both are made and unlinked at once: nothing shows at home, nothing can be created inside, nothing is left behind.
    """

    def __init__(self, root_fd: int) -> None:
        self.fds: dict[tuple[tuple[int, int], bytes], int] = {}
        work = f"/tmp/.mig-homefs-{os.getpid()}"
        os.mkdir(work, 0o755)
        try:
            directory = os.open(work, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.rmdir(work)
        self._add(os.fstat(root_fd), b".cell", directory)
        try:
            run = os.stat("run", dir_fd=root_fd)
        except FileNotFoundError:
            return
        self._add(run, b"criu.kdat", os.memfd_create("criu.kdat", os.MFD_CLOEXEC))

    def _add(self, where: os.stat_result, name: bytes, fd: int) -> None:
        self.fds[(where.st_dev, where.st_ino), name] = fd

    def names(self, directory: tuple[int, int]) -> set[bytes]:
        """The names in ``directory`` that are ours, whatever home has there."""
        return {n for d, n in self.fds if d == directory}

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


class NodeTable:
    """Node id -> :class:`Node` for one mount; safe to use from its channels' threads.

    Raises ``OSError`` (``ESTALE``) for a node that the host does not hold, or whose file is no longer where it was.
    """

    def __init__(self, root_fd: int, synthetic: Synthetic, validity: Validity, max_open: int) -> None:
        st = os.fstat(root_fd)
        root = Node(ROOT_ID, os.dup(root_fd), (st.st_dev, st.st_ino), 0, b"", lookups=PINNED)
        self.by_id: dict[int, Node] = {ROOT_ID: root}
        self._by_key: dict[tuple[int, int], Node] = {root.key: root}
        self._synthetic = synthetic
        self._names = {n for _, n in synthetic.fds}
        self._validity = validity
        self._max_open = max_open
        self._open = 1
        self._next = ROOT_ID + 1
        self._tick = 0
        self._lock = threading.RLock()
        self._granted: dict[tuple[int, bytes], float] = {}
        self._prune_at = 4096

    def get(self, node_id: int) -> Node:
        """The node, its descriptor open."""
        node = self.by_id.get(node_id)
        if node is None:
            raise OSError(errno.ESTALE, "the host asks for a node that it has forgotten")
        self._tick += 1
        node.used = self._tick  # before the descriptor is read: the youngest are never closed
        if node.fd < 0:
            with self._lock:
                self._reopen(node)
        return node

    def own(self, node_id: int) -> Node:
        """As :meth:`get`; raises ``OSError`` (``EACCES``) for a node that is lent."""
        node = self.get(node_id)
        if node.lent:
            raise PermissionError(errno.EACCES, "the guest cannot get there by itself")
        return node

    def path(self, node_id: int) -> str:
        """A path that leads to the node's file itself, also through the permissions of the directories above it."""
        return f"/proc/self/fd/{self.own(node_id).fd}"

    def knows(self, key: tuple[int, int]) -> bool:
        """Whether the guest got to this file by itself."""
        node = self._by_key.get(key)
        return node is not None and not node.lent

    def lookup(self, parent: int, name: bytes) -> bytes:
        """LOOKUP: the entry of ``name``; counts one lookup."""
        above = self.own(parent)
        if name in self._names and (fd := self._synthetic.fds.get((above.key, name))) is not None:
            return self.adopt(os.dup(fd), parent, name, pinned=True)
        return self.adopt(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.fd), parent, name)

    def lend(self, parent: int, name: bytes, may: Callable[[tuple[int, int]], bool | None]) -> bytes | None:
        """LOOKUP where the guest may not search, called with root's privileges.  ``may`` tells of a file whether the guest holds it (True)
        or it is on the way to such (False: lent); with None nobody gets an entry."""
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.get(parent).fd)
        except FileNotFoundError:
            return None
        st = os.stat(fd)
        held = may((st.st_dev, st.st_ino))
        if held is None:
            os.close(fd)
            return None
        return self.adopt(fd, parent, name, lent=not held)

    def adopt(self, fd: int, parent: int, name: bytes, *, pinned: bool = False, lent: bool = False) -> bytes:
        """The entry of the file that ``fd`` (``O_PATH``, ours from now on) refers to; counts one lookup."""
        st = os.stat(fd)
        key = (st.st_dev, st.st_ino)
        until = time.monotonic()
        with self._lock:
            node = self._by_key.get(key)
            if node is None:
                node = Node(self._next, fd, key, parent, name, lent=lent)
                self._next += 1
                self.by_id[node.id] = self._by_key[key] = node
                self._opened_one()
            else:
                node.lookups += 1
                node.lent = node.lent and lent
                node.parent, node.name = parent, name
                if node.fd < 0:
                    node.fd = fd
                    self._opened_one()
                else:
                    os.close(fd)
            if pinned:
                node.handles |= 1 << 40  # never closed: it has no name at home
            node.used = self._tick
            node.attrs_until = until + self._validity.attr_s
            self._granted[parent, name] = until + self._validity.entry_s
            if len(self._granted) > self._prune_at:
                self._granted = {k: t for k, t in self._granted.items() if t > until}
                self._prune_at = max(4096, 2 * len(self._granted))
        return self._validity.entry(node.id, st)

    def attributes(self, node_id: int) -> bytes:
        """GETATTR."""
        node = self.get(node_id)
        node.attrs_until = time.monotonic() + self._validity.attr_s
        return self._validity.attributes(os.stat(node.fd))

    def renamed(self, parent: int, name: bytes) -> None:
        """Note where a file now is, for the case that its descriptor has to be opened again."""
        try:
            st = os.stat(name, dir_fd=self.get(parent).fd, follow_symlinks=False)
        except OSError:
            return  # gone again already: nothing to note
        with self._lock:
            node = self._by_key.get((st.st_dev, st.st_ino))
            if node is not None:
                node.parent, node.name = parent, name

    def forget(self, node_id: int, count: int) -> None:
        """FORGET: the host dropped ``count`` lookups of the node."""
        with self._lock:
            node = self.by_id.get(node_id)
            if node is None or node_id == ROOT_ID:
                return
            node.lookups -= count
            if node.lookups <= 0:
                del self.by_id[node_id]
                del self._by_key[node.key]
                if node.fd >= 0:
                    self._open -= 1
                    os.close(node.fd)

    def trusted(self) -> tuple[list[tuple[int, bytes]], list[int], float]:
        """What the host may still trust: names as (parent, name), nodes by their attributes, and the monotonic end of the last trust."""
        now = time.monotonic()
        with self._lock:
            granted, self._granted = self._granted, {}
            names = [k for k, until in granted.items() if until > now and k[0] in self.by_id]
            nodes = [n.id for n in self.by_id.values() if n.attrs_until > now]
            last = max([now, *granted.values(), *(n.attrs_until for n in self.by_id.values())])
        return names, nodes, last

    def close(self) -> None:
        """Close every descriptor; the table is of no use afterwards."""
        with self._lock:
            for node in self.by_id.values():
                if node.fd >= 0:
                    os.close(node.fd)
            self.by_id.clear()
            self._by_key.clear()

    def _opened_one(self) -> None:
        self._open += 1
        if self._open > self._max_open:
            self._close_some()

    def _close_some(self) -> None:
        """Close the descriptors that were not used for longest: RLIMIT_NOFILE is the whole server's."""
        idle = sorted((n for n in self.by_id.values() if n.fd >= 0 and not n.handles and n.id != ROOT_ID), key=lambda n: (n.used, n.id))
        # the youngest quarter stays: a request that is being answered in another thread uses its node right now
        for node in idle[: len(idle) * 3 // 4]:
            fd, node.fd = node.fd, -1
            os.close(fd)
            self._open -= 1

    def _reopen(self, node: Node) -> None:
        if node.fd >= 0:
            return
        above = self.by_id.get(node.parent)
        if above is None:
            raise OSError(errno.ESTALE, "the file's directory is forgotten")
        if above.fd < 0:
            self._reopen(above)
        try:
            fd = os.open(node.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.fd)
        except FileNotFoundError as e:
            raise OSError(errno.ESTALE, "the file is no longer where it was") from e
        st = os.stat(fd)
        if (st.st_dev, st.st_ino) != node.key:
            os.close(fd)
            raise OSError(errno.ESTALE, "another file has taken the name")
        node.fd = fd
        self._opened_one()
