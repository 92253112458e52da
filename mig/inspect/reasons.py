"""Why a process cannot move: decided from a :class:`~mig.inspect.scene.Scene` alone, each reason a sentence with its remedy.

The sentences are in :mod:`mig.inspect.kinds`.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mig.inspect import own_sockets
from mig.inspect.kinds import KINDS
from mig.inspect.scene import Holder, Mapping, Member, OpenFile, Scene

GHOST_LIMIT = 64 << 20
"""Bytes of a deleted file that travel inside the image (CRIU's --ghost-limit as we set it)."""
SAFE_DEVICES = {os.makedev(1, n) for n in (3, 5, 7, 8, 9)}
"""null, zero, full, random, urandom: the same on every machine."""
DEV_TTY = os.makedev(5, 0)
DEV_PTMX = os.makedev(5, 2)
CARRIED_OBJECTS = {"[eventpoll]", "[eventfd]", "[signalfd]", "[timerfd]", "[pidfd]"}
"""Anonymous inodes that CRIU dumps and restores."""
WATCHES = {"inotify": "inotify", "[inotify]": "inotify", "[fanotify]": "fanotify"}
GPU_PATHS = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/accel/", "/dev/mali")
INET_TYPES = {int(socket.SOCK_STREAM): "TCP", int(socket.SOCK_DGRAM): "UDP", int(socket.SOCK_RAW): "raw"}
FAMILIES = {16: "a netlink", 17: "a packet", 29: "a CAN bus", 31: "a bluetooth", 38: "a kernel crypto", 40: "a vsock", 44: "an XDP"}
OTHER_PROCESS = re.compile(r"^/proc/(\d+)(/|$)")


@dataclass(frozen=True)
class Obstacle:
    """A reason before it becomes a sentence; equal obstacles of one process are told once, with all their descriptors."""

    kind: str
    member: Member
    what: str = ""
    other: str = ""
    fd: int = -1


def pts_index(tty_nr: int) -> int:
    """N of the /dev/pts/N with this device number, or -1 when it is no pseudo terminal."""
    major = os.major(tty_nr)
    return (major - 136) * 256 + os.minor(tty_nr) if 136 <= major <= 143 else -1


def who(m: Member) -> str:
    """How a process is named in a sentence."""
    return f"{m.comm} ({m.pid})"


def _named(holders: list[Holder]) -> str:
    names = [f"{h.comm} ({h.pid})" for h in {h.pid: h for h in holders}.values()]
    return names[0] if len(names) == 1 else f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"


def cannot_move(scene: Scene) -> list[str]:
    """Every reason why the tree cannot move, as sentences; empty when it can."""
    grouped: dict[Obstacle, list[int]] = {}
    for o in obstacles(scene):
        key = Obstacle(o.kind, o.member, o.what, o.other)
        grouped.setdefault(key, [])
        if o.fd >= 0 and o.fd not in grouped[key]:
            grouped[key].append(o.fd)
    return [sentence(o, fds) for o, fds in grouped.items()]


def sentence(o: Obstacle, fds: list[int]) -> str:
    """The sentence of an obstacle that these descriptors have in common (none: it is a mapping)."""
    kind = KINDS[o.kind]
    if not fds:
        fd = "mapped into its memory"
    elif len(fds) == 1:
        fd = f"descriptor {fds[0]}"
    else:
        shown = ", ".join(map(str, fds[:8]))
        fd = f"descriptors {shown}{' …' if len(fds) > 8 else ''}"
    said = kind.says.format(who=who(o.member), what=o.what, other=o.other, fd=fd)
    return f"{said}: {kind.remedy.format(pid=o.member.pid)}"


def obstacles(scene: Scene) -> Iterator[Obstacle]:
    """Every obstacle found, one per process and descriptor."""
    for m in scene.members:
        if m.pid == scene.asker:
            yield Obstacle("asker", m)
            continue
        about_process = list(_process(scene, m))
        yield from about_process
        if any(o.kind in ("kernel-thread", "init") for o in about_process):
            return  # whatever hangs below it does not matter
        if any(o.kind == "deputy" for o in about_process):
            continue  # its descriptors are the guest's business
        yield from _terminal(scene, m)
        for f in m.files:
            yield from _descriptor(scene, m, f)
        for v in m.mappings:
            yield from _mapping(scene, m, v)


def _process(scene: Scene, m: Member) -> Iterator[Obstacle]:
    if m.kernel_thread:
        yield Obstacle("kernel-thread", m)
        return
    if m.pid == 1:
        yield Obstacle("init", m)
        return
    if m.state in "ZX":
        if m.threads > 1:
            yield Obstacle("dead-leader", m)
        elif m is scene.root:
            yield Obstacle("zombie", m)
        return
    if m.hidden:
        yield Obstacle("hidden", m)
    if m.tracer:
        yield Obstacle("traced", m, f"process {m.tracer}")
    if m.role:
        yield Obstacle("deputy", m) if m.role == "deputy" else Obstacle("ours", m, m.role)
    if m.bits == 32:
        yield Obstacle("32-bit", m)
    if m.borrows_memory_of:
        yield Obstacle("vfork", m, m.borrows_memory_of)
    if m.namespaces and not scene.guest:
        yield Obstacle("namespace", m, " and ".join(m.namespaces))
    if m.exe_ghost > GHOST_LIMIT:
        yield Obstacle("ghost", m, m.exe, str(m.exe_ghost >> 20))
    if m.sid == 0 and not scene.guest:
        yield Obstacle("outside-session", m)
    elif m.sid != scene.root.sid and m.sid not in scene.pids:
        yield Obstacle("foreign-session", m, str(m.sid))


def _terminal(scene: Scene, m: Member) -> Iterator[Obstacle]:
    if not m.tty_nr or _served_inside(scene, pts_index(m.tty_nr)):
        return
    if pts_index(m.tty_nr) < 0:
        yield Obstacle("console", m, _console_name(m.tty_nr))
    elif m.pid == m.sid and not scene.guest:
        yield Obstacle("session-leader", m)


def _console_name(tty_nr: int) -> str:
    major, minor = os.major(tty_nr), os.minor(tty_nr)
    if major == 4:
        return f"/dev/tty{minor}" if minor < 64 else f"/dev/ttyS{minor - 64}"
    return "/dev/console" if (major, minor) == (5, 1) else f"{major}:{minor}"


def _served_inside(scene: Scene, index: int) -> bool:
    """Whether the master of this pseudo terminal is held inside the tree, so that the pair moves as one."""
    return index >= 0 and any(f.rdev == DEV_PTMX and f.tty_index == index for m in scene.members for f in m.files)


def _descriptor(scene: Scene, m: Member, f: OpenFile) -> Iterator[Obstacle]:
    others = scene.held.get(f.target, [])
    if f.socket is not None:
        yield from _socket(scene, m, f)
    elif f.target.startswith("pipe:"):
        yield from _pipe(scene, m, f, others)
    elif f.target.startswith("anon_inode:"):
        yield from _object(scene, m, f)
    elif stat.S_ISCHR(f.mode) or stat.S_ISBLK(f.mode):
        yield from _device(scene, m, f)
    elif stat.S_ISFIFO(f.mode):
        if others:
            yield Obstacle("fifo", m, f.target, _named(others), fd=f.fd)
    elif f.target.startswith("/memfd:"):
        if others:
            yield Obstacle("shared-memory", m, f.target, _named(others), f.fd)
    else:
        yield from _file(scene, m, f)


def _file(scene: Scene, m: Member, f: OpenFile) -> Iterator[Obstacle]:
    other_process = OTHER_PROCESS.match(f.target)
    gone = f.target.endswith(" (deleted)")
    if scene.mounts is not None and f.mode and f.mnt_id not in scene.mounts:
        yield Obstacle("other-mount", m, f.target, fd=f.fd)
    elif other_process and int(other_process[1]) not in scene.pids:
        yield Obstacle("proc-file", m, f.target, fd=f.fd)
    elif f.target.startswith("/dev/shm/") and stat.S_ISREG(f.mode) and not gone:
        yield Obstacle("named-memory", m, f.target, fd=f.fd)
    elif gone and stat.S_ISREG(f.mode) and f.disk > GHOST_LIMIT:
        yield Obstacle("ghost", m, f.target.removesuffix(" (deleted)"), str(f.disk >> 20), f.fd)
    elif gone and stat.S_ISREG(f.mode) and (others := scene.held.get(f.target)):
        yield Obstacle("shared-deleted", m, f.target.removesuffix(" (deleted)"), _named(others), f.fd)


def _pipe(scene: Scene, m: Member, f: OpenFile, others: list[Holder]) -> Iterator[Obstacle]:
    if others and f.target not in scene.known_pipes and pipe_direction(scene, f.target) == "rw":
        yield Obstacle("two-way-pipe", m, f.target, _named(others), f.fd)


def pipe_direction(scene: Scene, target: str) -> str:
    """How the whole tree uses a pipe: r, w or rw."""
    access = {f.flags & os.O_ACCMODE for m in scene.members for f in m.files if f.target == target}
    if access == {os.O_RDONLY}:
        return "r"
    return "w" if access == {os.O_WRONLY} else "rw"


def _object(scene: Scene, m: Member, f: OpenFile) -> Iterator[Obstacle]:
    name = f.target.removeprefix("anon_inode:")
    if name == "[io_uring]":
        yield Obstacle("io_uring", m, fd=f.fd)
    elif name in WATCHES:
        yield Obstacle("file-watch", m, WATCHES[name], fd=f.fd)
    elif name not in CARRIED_OBJECTS:
        yield Obstacle("kernel-object", m, name.strip("[]"), fd=f.fd)
    elif name == "[pidfd]" and f.watched_pid > 0 and f.watched_pid not in scene.pids:
        yield Obstacle("pidfd", m, str(f.watched_pid), fd=f.fd)
    elif same := scene.same.get((m.pid, f.fd)):
        yield Obstacle("shared-object", m, name.strip("[]"), _named(same), f.fd)


def _device(scene: Scene, m: Member, f: OpenFile) -> Iterator[Obstacle]:
    if stat.S_ISCHR(f.mode):
        if f.rdev in SAFE_DEVICES:
            return
        if f.rdev == DEV_PTMX:
            outside = scene.same.get((m.pid, f.fd), []) + scene.held.get(f"/dev/pts/{f.tty_index}", [])
            if outside:
                yield Obstacle("pty-master", m, str(f.tty_index), _named(outside), f.fd)
            return
        index = pts_index(f.rdev)
        if index >= 0 or f.rdev == DEV_TTY or os.major(f.rdev) == 4 or f.rdev == os.makedev(5, 1):
            controlling = f.rdev == m.tty_nr or (f.rdev == DEV_TTY and m.tty_nr)
            if not controlling and f.rdev != scene.root.tty_nr and not _served_inside(scene, index):
                yield Obstacle("other-terminal", m, f.target, fd=f.fd)
            return
    kind = "gpu" if f.target.startswith(GPU_PATHS) else "device"
    yield Obstacle(kind, m, f.target, fd=f.fd)


def _socket(scene: Scene, m: Member, f: OpenFile) -> Iterator[Obstacle]:
    s = f.socket
    assert s is not None
    if s.family in (socket.AF_INET, socket.AF_INET6):
        yield Obstacle("inet-socket", m, f"a {INET_TYPES.get(s.type, 'network')} socket{f' ({s.where})' if s.where else ''}", fd=f.fd)
    elif s.family != socket.AF_UNIX:
        yield Obstacle("socket", m, f"{_family(s.family)} socket", fd=f.fd)
    elif (s.listening or (s.bound and s.type == socket.SOCK_DGRAM)) and not _for_itself(scene, s.where):
        kind = "abstract-socket" if s.where.startswith("@") else "unix-listener"
        yield Obstacle(kind, m, s.where, fd=f.fd)
    else:
        yield from _unix(scene, m, f, s.peer, s.where)


def _for_itself(scene: Scene, name: str) -> bool:
    """Whether this unix socket serves the tree's own processes alone, under a name that can go along.

    Names without a file are the network namespace's, and a guest uses that of its host.
    """
    return not name.startswith("@") and (scene.own_sockets or own_sockets.KNOWN.search(name) is not None)


def _family(number: int) -> str:
    return FAMILIES.get(number, f"a special (family {number})")


def _unix(scene: Scene, m: Member, f: OpenFile, peer: int, where: str) -> Iterator[Obstacle]:
    co_holders = scene.held.get(f.target, [])
    if peer and f"socket:[{peer}]" not in scene.targets:
        at_other_end = scene.held.get(f"socket:[{peer}]", [])
        fallback = f"{where} (a process that stays)" if where else "a process that stays"
        yield Obstacle("unix-peer", m, _named(at_other_end) if at_other_end else fallback, fd=f.fd)
    elif co_holders:
        yield Obstacle("unix-peer", m, f"{_named(co_holders)}, which has the same socket", fd=f.fd)
    elif peer and (theirs := scene.held.get(f"socket:[{peer}]")):
        yield Obstacle("unix-peer", m, f"{_named(theirs)}, which has the other end too", fd=f.fd)


def _mapping(scene: Scene, m: Member, v: Mapping) -> Iterator[Obstacle]:
    path = v.path.removesuffix(" (deleted)")
    for test, kind in _BY_PATH:
        if test(scene, v):
            if kind == "io_uring" or not any(f.target == v.path for f in m.files):
                yield Obstacle(kind, m, path.removeprefix("anon_inode:"), str(v.disk >> 20))
            return
    if v.shared and (holders := scene.mapped.get((v.dev, v.ino))):
        what = "anonymous" if path == "/dev/zero" else path
        yield Obstacle("shared-memory", m, what, _named(holders))


_BY_PATH: tuple[tuple[Callable[[Scene, Mapping], bool], str], ...] = (
    (lambda s, v: v.path.startswith("/SYSV"), "sysv-memory"),
    (lambda s, v: v.path.startswith("/anon_hugepage") or any(v.path.startswith(d + "/") for d in s.hugetlbfs), "huge-pages"),
    (lambda s, v: v.path == "anon_inode:[io_uring]", "io_uring"),
    (lambda s, v: v.path.startswith("anon_inode:"), "kernel-object"),
    (lambda s, v: v.path.startswith("/dev/shm/") and not v.path.endswith(" (deleted)"), "named-memory"),
    (lambda s, v: v.path.startswith(GPU_PATHS), "gpu"),
    (lambda s, v: v.path.startswith("/dev/") and not v.path.startswith(("/dev/shm/", "/dev/zero", "/dev/null")), "device"),
    (lambda s, v: v.disk > GHOST_LIMIT and not v.shared, "ghost"),
)
