"""The nouns of the system, as plain data that travels: identities, nodes, what is known of a process.

Every class here turns into a map of plain values with ``dataclasses.asdict`` and back with ``from_map``; unknown keys are ignored, so
that a newer node can talk to an older one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self


class Mapped:
    """Mixin: build a dataclass from a map, ignoring keys it does not know."""

    @classmethod
    def from_map(cls, m: dict[str, Any]) -> Self:
        """Build from a map of field values; raises ``TypeError`` for what is no map, and when a field without default is missing."""
        if not isinstance(m, dict):
            raise TypeError(f"{cls.__name__}: {type(m).__name__} instead of a map")
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # every user of the mixin is a dataclass
        return cls(**{k: v for k, v in m.items() if k in names})


@dataclass(frozen=True)
class ProcessId(Mapped):
    """A process, not a number: the pid, its start time in clock ticks since boot, and the boot it belongs to."""

    pid: int
    start: int
    boot: str


@dataclass
class NodeInfo(Mapped):
    """What one node knows of another.  Memory in bytes, load in processes per standard CPU, speed relative to a standard CPU (1.0)."""

    id: int
    name: str
    addr: str
    port: int = 0
    state: str = "alive"  # alive | suspect | dead | left
    incarnation: int = 0
    boot: str = ""
    speed: float = 1.0
    cpus: float = 1.0
    load: float = 0.0
    mem_total: int = 0
    mem_free: int = 0
    guests: int = 0
    accepting: bool = True
    why_not: str = ""
    age_s: float = 0.0
    version: str = ""
    fingerprint: str = ""  # of its certificate (mig.trust.store)
    kernel: str = ""  # release
    criu: str = ""  # what its CRIU can do (mig.criu.features), comma-separated
    cpu: str = ""  # architecture, digest of the CPU's flags and xsave size: nodes of one value run each other's processes
    swap_total: int = 0
    swap_free: int = 0
    psi_cpu: float = -1.0  # pressure of the last 10 s in per cent; -1: the kernel has none
    psi_mem: float = -1.0
    mem_unused: int = -1  # what nothing uses, not even caches (mem_free counts what they would give up); -1: not told
    pool: str = ""  # adaptive pool: in | leaving | out; "" where it does not say
    steps: bool = False  # its incarnations are counted as in mig.pool.incarnations; older versions' are not


@dataclass
class External(Mapped):
    """Something of the moving tree that is shared with the world at home and is therefore proxied: a pipe end or the terminal."""

    id: int
    kind: str  # pipe | tty
    key: str  # pipe:[INODE] as in /proc/PID/fd; "tty" for the controlling terminal
    dir: str = "r"  # pipe: r | w, seen from the guest; tty: rw
    holders: list[list[int]] = field(default_factory=list)  # [pid, fd] pairs inside the tree
    shared: bool = False  # others at home read from it too: input is passed on only when the guest asks for it
    alone: bool = False  # pipe: nobody outside of the tree was seen to hold either end
    index: int = -1  # tty: N of /dev/pts/N
    termios: list[Any] = field(default_factory=list)  # tty: as termios.tcgetattr, control characters as ints or bytes
    winsize: bytes = b""  # tty: struct winsize


@dataclass
class SharedFile(Mapped):
    """A regular file whose open file description the tree shares with a process that stays (``{ job; echo; } > out``)."""

    pid: int
    fd: int
    dev: int
    ino: int
    flags: int
    pos: int


@dataclass
class ProcessFacts(Mapped):
    """Everything a destination must know to prepare a cell, and everything that speaks against a move.

    ``tree`` lists the pids that move as one, the root first.  ``reasons`` is empty when the process can move.
    """

    pid: int
    start: int
    boot: str
    comm: str
    uid: int
    gid: int
    ppid: int
    pgid: int
    sid: int
    tty_nr: int  # 0: no controlling terminal
    tpgid: int
    tree: list[int]
    tids: list[int]  # every thread of the tree
    uids: list[int] = field(default_factory=list)  # every uid in the tree
    gids: list[int] = field(default_factory=list)
    hostname: str = ""
    rss: int = 0  # bytes, private and shared memory of the tree
    cpu_s: float = 0.0
    age_s: float = 0.0
    externals: list[External] = field(default_factory=list)
    shared_files: list[SharedFile] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    passing: bool = False  # the reasons, or some of them, are those of a moment: looking again may find none
    privileges: list[str] = field(default_factory=list)  # what a host refuses unless it takes root's processes

    @classmethod
    def from_map(cls, m: dict[str, Any]) -> Self:
        """As :meth:`Mapped.from_map`, with the nested records built too."""
        f = super().from_map(m)
        f.externals = [e if isinstance(e, External) else External.from_map(e) for e in f.externals]
        f.shared_files = [e if isinstance(e, SharedFile) else SharedFile.from_map(e) for e in f.shared_files]
        return f


@dataclass
class GuestState(Mapped):
    """A row of ``mosps``: one guest, seen from its home agent or from its keeper."""

    role: str  # agent (at home) | keeper (on the host) | job (runs at home, never moved)
    pid: int  # pid at home
    home: str
    where: str
    # running | moving | stopped | frozen | stored (on home's disk) | in-doubt | settling | unreachable;
    # on a host that it has left: holding (its memory)
    state: str
    nmigs: int = 0
    locked: bool = False
    cantmove: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    rss: int = 0
    uid: int = 0
    comm: str = ""
    start: int = 0
    since: float = 0.0  # wall time at which it came to where it is
    hold_until: float = 0.0  # keeper: wall time until which no balancer moves it, because somebody put it there by hand
    host_pid: int = 0  # keeper: the guest's pid as this node sees it
    helper: int = 0  # pid of the agent or keeper
    arriving: int = 0  # bytes of its memory that have not reached it yet
    waiting_for: str = ""  # the node that should send them and is silent
    waiting_s: float = 0.0  # for how many seconds
    holder: int = 0  # agent: pid of the process at home that holds them
