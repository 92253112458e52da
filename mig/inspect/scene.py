"""What was seen of a tree of processes and of those around it, as plain data: gathered by ``look``, judged by ``reasons``.

Pids here are the guest's own numbers, that is those at home: for a guest on its host they are read from NSpid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Socket:
    """A socket behind a descriptor.  ``family`` and ``type`` as in socket(2); ``peer`` is the inode of a unix socket's other end."""

    family: int
    type: int
    ino: int
    where: str = ""  # addresses or the bound path, for the reader of a reason
    listening: bool = False
    bound: bool = False  # unix: has a name that others can connect or send to
    peer: int = 0


@dataclass(frozen=True)
class OpenFile:
    """One descriptor of one process, from /proc/PID/fd and fdinfo; ``mode`` 0 means that it was not looked at (pipes, anonymous inodes)."""

    fd: int
    target: str  # as readlink /proc/PID/fd/N
    flags: int = 0  # open(2) flags
    pos: int = 0
    mnt_id: int = 0
    mode: int = 0  # st_mode
    dev: int = 0
    ino: int = 0
    rdev: int = 0
    nlink: int = 1
    disk: int = 0  # bytes that the file takes on disk
    tty_index: int = -1  # pty masters: N of their /dev/pts/N
    watched_pid: int = 0  # pidfds: the process that it stands for, -1 when that is gone
    socket: Socket | None = None


@dataclass(frozen=True)
class Mapping:
    """A mapping that matters: shared, of a device or an anonymous inode, or of a deleted file."""

    path: str
    shared: bool
    writable: bool
    dev: tuple[int, int]  # major, minor
    ino: int
    disk: int = 0  # deleted files: bytes on disk, else 0


@dataclass(frozen=True)
class Member:
    """One process of the tree."""

    pid: int
    comm: str
    ppid: int = 0
    pgid: int = 0
    sid: int = 0
    state: str = "S"
    tty_nr: int = 0
    threads: int = 1
    tracer: int = 0
    kernel_thread: bool = False
    hidden: bool = False  # we may not look into it: what follows is unknown
    namespaces: tuple[str, ...] = ()  # those (mnt, pid, …) in which it is elsewhere than we are
    bits: int = 64
    role: str = ""  # one of our own processes: omdiscd, agent, keeper, criu, moslab, deputy
    borrows_memory_of: str = ""  # "comm (pid)" of the process whose address space it shares (vfork)
    exe: str = ""
    exe_ghost: int = 0  # bytes on disk of a deleted executable
    files: tuple[OpenFile, ...] = ()
    mappings: tuple[Mapping, ...] = ()


@dataclass(frozen=True)
class Holder:
    """A process outside of the tree that has something of the tree's open or mapped.  ``access``: r, w, rw, or empty where unknown."""

    pid: int
    comm: str
    fd: int = -1
    access: str = ""


@dataclass(frozen=True)
class Scene:
    """A tree (root first) and all that was found outside of it that concerns it.

    ``held`` maps a descriptor's target (``pipe:[7]``, ``/a/fifo``, ``socket:[9]``) to its holders outside; ``same`` maps a member's
    (pid, fd) to those outside that have the same open file description; ``mapped`` maps (device, inode) of shared mappings to those
    that map it too; ``mounts`` are the mount ids that exist in the tree's mount namespace, None when unknown.
    """

    members: tuple[Member, ...]
    held: dict[str, list[Holder]] = field(default_factory=dict)
    same: dict[tuple[int, int], list[Holder]] = field(default_factory=dict)
    mapped: dict[tuple[tuple[int, int], int], list[Holder]] = field(default_factory=dict)
    mounts: frozenset[int] | None = None
    hugetlbfs: tuple[str, ...] = ()  # mount points
    guest: bool = False
    own_sockets: bool = False  # its named unix sockets are for its own processes alone
    asker: int = 0  # pid of the process that asks for the move, 0 where it does not matter
    known_pipes: dict[str, int] = field(default_factory=dict)  # guests: target of a proxied pipe -> external id

    @property
    def root(self) -> Member:
        """The process that was asked to move."""
        return self.members[0]

    @cached_property
    def targets(self) -> frozenset[str]:
        """What the tree's descriptors lead to."""
        return frozenset(f.target for m in self.members for f in m.files)

    @property
    def pids(self) -> frozenset[int]:
        """Every pid of the tree."""
        return frozenset(m.pid for m in self.members)
