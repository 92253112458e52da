"""Why a process cannot move: decided from a :class:`~mig.inspect.scene.Scene` alone, each reason a sentence with its remedy.

:data:`KINDS` is the list that ``docs/cannot-move.md`` documents; a test keeps both equal.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mig.inspect.scene import Holder, Mapping, Member, OpenFile, Scene

GHOST_LIMIT = 64 << 20
"""Bytes of a deleted file that travel inside the image (CRIU's --ghost-limit as we set it)."""


@dataclass(frozen=True)
class Kind:
    """One kind of obstacle: ``says`` is the sentence with places for names, ``remedy`` what to do about it, ``why`` for the manual."""

    says: str
    remedy: str
    why: str


KINDS: dict[str, Kind] = {
    # -- the process itself
    "init": Kind(
        "{who} is the init process of this system",
        "move one of its children instead",
        "Process 1 reaps all others; the machine cannot run without it.",
    ),
    "kernel-thread": Kind(
        "{who} is a kernel thread",
        "choose a user process",
        "A kernel thread has no memory of its own; it is part of this machine's kernel.",
    ),
    "zombie": Kind(
        "{who} has ended already and waits for its parent to collect its exit status",
        "nothing is left to move",
        "A zombie is an entry in the process table.",
    ),
    "dead-leader": Kind(
        "the main thread of {who} has ended while other threads run on",
        "it cannot be moved while it runs like this",
        "CRIU cannot dump a process whose first thread is gone.",
    ),
    "hidden": Kind(
        "{who} may not be looked into by omdiscd, because it has privileges that omdiscd does not have",
        "give omdiscd the same capabilities, or run the program with fewer",
        "The kernel lets a process be dumped only by one that has at least its capabilities (ptrace(2), access mode checking).",
    ),
    "traced": Kind(
        "{who} is being traced by {what}",
        "detach the debugger or strace first",
        "A process has one tracer at most, and ours must take that place for some milliseconds.",
    ),
    "ours": Kind(
        "{who} is a process of this system itself ({what})",
        "choose another process",
        "Daemons, home agents, keepers and CRIU workers belong to the node that they serve.",
    ),
    "deputy": Kind(
        "{who} is the deputy of a guest that runs on another node",
        "bring that guest home first (migrate {pid} home); if its agent does not answer, see mosps and /run/mig/log",
        "A deputy holds its guest's place at home. migrate with its pid moves the guest; as a part of its parent's tree it cannot move.",
    ),
    "32-bit": Kind(
        "{who} is a 32-bit program",
        "run a 64-bit build of it",
        "The deputy that takes its place is a 64-bit program, and system calls are injected in that mode only.",
    ),
    "vfork": Kind(
        "{who} shares its memory with {what}, as between vfork and exec",
        "try again in a moment",
        "Two processes with one address space cannot be dumped apart.",
    ),
    "namespace": Kind(
        "{who} lives in another {what} namespace than omdiscd",
        "run omdiscd inside its container too, or start it outside",
        "Home is the system that omdiscd sees; a container's files and names are another system.",
    ),
    "session-leader": Kind(
        "{who} is the leader of the session of its terminal, as a login shell is",
        "move the jobs that it starts; start programs without a shell of their own through mosrun",
        "If the leader of a session leaves its terminal, the kernel hangs the terminal up for all its jobs.",
    ),
    "foreign-session": Kind(
        "{who} belongs to session {what}, whose leader is neither in its tree nor the session of its parent process",
        "it cannot be moved together with its parent; move it alone",
        "A moved tree can have one session that began outside of it.",
    ),
    "console": Kind(
        "{who} has the terminal {what}, which is not a pseudo terminal",
        "start it from ssh, tmux, screen or a terminal window, or detach it with setsid",
        "Only pseudo terminals (/dev/pts/N) can be carried over the network; a console or serial line is hardware.",
    ),
    # -- descriptors
    "other-terminal": Kind(
        "{who} has {what} open as {fd}, which is a terminal but not its controlling one",
        "redirect that descriptor, or start it from that terminal",
        "One terminal, the controlling one, follows a guest.",
    ),
    "pty-master": Kind(
        "{who} holds the master side of terminal /dev/pts/{what} as {fd} for processes outside of it",
        "move the programs that run inside (its children), not the terminal program itself",
        "Terminal emulators, tmux, screen, script and sshd serve a terminal to processes that would stay.",
    ),
    "inet-socket": Kind(
        "{who} has {what} open as {fd}",
        "close its network connections, or wait until it has none",
        "Live network connections do not follow a process yet.",
    ),
    "socket": Kind(
        "{who} has {what} open as {fd}",
        "close it, or run it at home",
        "Netlink, packet, vsock and other special sockets belong to this machine's kernel.",
    ),
    "unix-peer": Kind(
        "{who} is connected by a unix socket ({fd}) to {what}",
        "close the connection, or move both ends together as one tree",
        "A unix socket joins two processes of one machine.",
    ),
    "unix-listener": Kind(
        "{who} offers a unix socket to others ({fd}, {what})",
        "stop the service, or run it at home",
        "Other processes of this machine connect to it by its name.",
    ),
    "device": Kind(
        "{who} has the device {what} open ({fd})",
        "close the device, or run it at home",
        "A device is hardware or kernel state of this machine; only null, zero, full, random and urandom are everywhere.",
    ),
    "gpu": Kind(
        "{who} uses the GPU device {what} ({fd})",
        "run it at home, or without the GPU",
        "The state inside a graphics processor cannot be taken along.",
    ),
    "io_uring": Kind(
        "{who} uses io_uring ({fd})",
        "switch it off in the program (UV_USE_IO_URING=0 for Node.js and libuv)",
        "The kernel offers no way to dump the rings of io_uring.",
    ),
    "kernel-object": Kind(
        "{who} holds a kernel object that cannot be taken along, {what} ({fd})",
        "let it finish that work, or run it at home",
        "userfaultfd, bpf, perf, file system contexts and the like exist only inside this machine's kernel.",
    ),
    "file-watch": Kind(
        "{who} watches files for changes ({what}, {fd})",
        "stop the watching (tail: use --disable-inotify or ---disable-inotify), or run it at home",
        "Notices about changes at home do not reach other nodes.",
    ),
    "pidfd": Kind(
        "{who} holds a pidfd ({fd}) of process {what} outside of its tree",
        "close it, or move the parent that holds both",
        "The other process stays here.",
    ),
    "shared-object": Kind(
        "{who} shares {what} ({fd}) with {other}, which would stay",
        "move the parent of both as one tree, or run it at home",
        "An eventfd, timerfd, signalfd or epoll descriptor is one object; it cannot be in two machines at once.",
    ),
    "fifo": Kind(
        "{who} uses the named pipe {what} ({fd}) together with {other}, which would stay",
        "use an ordinary pipe, or move both together as one tree",
        "A named pipe works inside one machine only.",
    ),
    "two-way-pipe": Kind(
        "{who} both reads and writes {what} ({fd}), which {other} uses too, as a job server does",
        "move the parent of both as one tree, or run it at home",
        "A pipe that follows a guest carries data in one direction.",
    ),
    "other-mount": Kind(
        "{who} has {what} open ({fd}) from a mount that is not part of its file tree any more, or from another mount namespace",
        "open the file again by its name, or start the program (and its redirections) inside",
        "CRIU finds files by mount and path; this one has no path here.",
    ),
    "ghost": Kind(
        "{who} uses the deleted file {what} ({fd}) of {other} MiB; up to 64 MiB of deleted files travel along",
        "start it again, or put the file back under its name",
        "A deleted file has no name under which another node could open it, so its content must travel inside the image.",
    ),
    "proc-file": Kind(
        "{who} has {what} open ({fd}), a file of a process outside of its tree",
        "close it, or run it at home",
        "That process does not exist on other nodes.",
    ),
    # -- memory
    "shared-memory": Kind(
        "{who} shares memory ({what}) with {other}, which would stay",
        "move the parent of both as one tree, or run it at home",
        "Memory that two machines write at once cannot be kept equal at a bearable price.",
    ),
    "named-memory": Kind(
        "{who} uses the named shared memory {what} ({fd})",
        "let the program unlink the name when all have it open, or run it at home",
        "Every process of this machine may open /dev/shm by name; other nodes have one of their own.",
    ),
    "sysv-memory": Kind(
        "{who} has System V shared memory attached ({what})",
        "run it at home",
        "Such a segment belongs to the whole machine, whoever has it attached at the moment.",
    ),
    "huge-pages": Kind(
        "{who} uses reserved huge pages ({what})",
        "use transparent huge pages instead",
        "Huge pages are reserved by an administrator on each machine; another node may have none.",
    ),
}

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
        about_process = list(_process(scene, m))
        yield from about_process
        if any(o.kind in ("kernel-thread", "init") for o in about_process):
            return  # whatever hangs below it does not matter
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
    if m.sid != scene.root.sid and m.sid not in scene.pids:
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
    elif s.listening or (s.bound and s.type == socket.SOCK_DGRAM):
        yield Obstacle("unix-listener", m, s.where, fd=f.fd)
    else:
        yield from _unix(scene, m, f, s.peer, s.where)


def _family(number: int) -> str:
    return FAMILIES.get(number, f"a special (family {number})")


def _unix(scene: Scene, m: Member, f: OpenFile, peer: int, where: str) -> Iterator[Obstacle]:
    co_holders = scene.held.get(f.target, [])
    inside = {g.target for n in scene.members for g in n.files}
    if peer and f"socket:[{peer}]" not in inside:
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
