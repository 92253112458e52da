"""Everything about a tree of processes that a move must know, read from /proc without touching the processes.

It costs about a millisecond a process, plus one pass over the descriptors of all processes where something may be shared.
"""

from __future__ import annotations

import fcntl
import os
import stat
import termios
import time
from collections.abc import Collection

from mig.inspect import look, own_sockets, sockets
from mig.inspect.around import Around, used_in_turns
from mig.inspect.reasons import DEV_TTY, cannot_move, pipe_direction, pts_index
from mig.inspect.scene import Scene
from mig.kernel import pidfd, procfs
from mig.model import External, ProcessFacts, SharedFile

TICKS = os.sysconf("SC_CLK_TCK")


_LOOKS = 8
"""Looks at a tree that forks or connects all the time, and about which something is found, before that is believed."""
_PAUSE_S = 0.001
"""Seconds by which each of them is later than the one before: whom it shall see act needs a CPU."""


def gather(
    pid: int, *, guest: bool = False, known_pipes: dict[str, int] | None = None, ignore: Collection[int] = (), asker: int = 0,
    frozen: bool = False,
) -> ProcessFacts:  # fmt: skip
    """The facts of ``pid`` and its descendants, with every reason against a move.

    ``pid`` is a number of our own pid namespace.  At home (``guest=False``) that is also the number in the facts.  A keeper asks about
    its guest with ``guest=True``: then all numbers in the facts are those that the guest sees, which are those at home; its namespaces
    are its cell, nothing around it counts, and ``known_pipes`` maps the pipes that the keeper serves (``pipe:[INO]`` as in the cell, and
    ``tty`` if the id of the terminal is not the next free one) to their external ids.

    ``ignore``: processes outside of the tree that do not count as holders, such as our own helpers that have duplicates of descriptors.
    ``asker``: pid of whoever asks for the move; it is named if it is in the tree, and what it has open is not.
    ``frozen``: it stands still, so that another look would find the same.

    Raises ``ProcessLookupError`` when there is no such process.
    """
    for n in range(1 if frozen else _LOOKS):
        time.sleep(n * _PAUSE_S)
        before = procfs.tree(pid)
        facts = _look(pid, guest, known_pipes or {}, ignore, asker)
        # a child that was born in between passes for a stranger, and one that has not called exec yet has its parent's memory
        facts.passing = bool(facts.reasons) and (facts.passing or procfs.tree(pid) != before)
        if not facts.passing:
            break
    return facts


def _look(pid: int, guest: bool, known: dict[str, int], ignore: Collection[int], asker: int) -> ProcessFacts:
    scene, seen = _scene(pid, guest, known, ignore, asker)
    outer, status = list(seen), list(seen.values())
    externals = [*_pipes(scene, known), *_terminal(scene, outer, known)]
    st = procfs.stat(pid)
    root = scene.root
    return ProcessFacts(
        pid=root.pid,
        start=st.start,
        boot=pidfd.boot_id(),
        comm=root.comm,
        uid=status[0].uids[0],
        gid=status[0].gids[0],
        ppid=_inner(st.ppid) if guest else st.ppid,
        pgid=root.pgid,
        sid=root.sid,
        tty_nr=st.tty_nr,
        tpgid=_inner(st.tpgid) if guest else st.tpgid,
        tree=[m.pid for m in scene.members],
        tids=[t for p in outer for t in _threads(p, guest)],
        uids=sorted({u for s in status for u in s.uids}),
        gids=sorted({g for s in status for g in (*s.gids, *s.groups)}),
        hostname="" if guest else os.uname().nodename,
        rss=sum(_memory(s.fields) for s in status),
        cpu_s=_cpu(outer),
        age_s=time.clock_gettime(time.CLOCK_BOOTTIME) - st.start / TICKS,
        externals=externals,
        shared_files=_shared_files(scene),
        privileges=[f"{m.comm} ({m.pid}): {p}" for m, (o, s) in zip(scene.members, seen.items(), strict=True) for p in _privileges(o, s)],
        reasons=cannot_move(scene),
        passing=any(m.borrows_memory_of for m in scene.members) or _half_seen(scene),
    )


def _scene(pid: int, guest: bool, known: dict[str, int], ignore: Collection[int], asker: int) -> tuple[Scene, dict[int, procfs.Status]]:
    """What is to be judged, and the status of each member by its number in our own pid namespace."""
    members = []
    outer: dict[int, procfs.Status] = {}
    diag = sockets.UnixDiag(pid)
    try:
        for p in procfs.tree(pid):
            try:
                m, status = look.member(p, guest=guest, diag=diag), procfs.status(p)
            except ProcessLookupError:
                if p == pid:
                    raise  # a child may end while we look, the root may not
            else:
                members.append(m)
                outer[p] = status
    finally:
        diag.close()
    tree = tuple(members)
    mounts, huge = _mounts(pid)
    if guest:
        # nobody else can reach a socket in a cell
        return Scene(tree, mounts=mounts, hugetlbfs=huge, guest=True, known_pipes=known, own_sockets=True), outer
    around = Around(tree, ignore)
    return Scene(tree, around.held, around.same, around.mapped, mounts, huge, own_sockets=own_sockets.declared(pid), asker=asker), outer


def _half_seen(scene: Scene) -> bool:
    """Whether a connection has an end that nobody was seen to hold: it was made or closed between the looks at its two processes, or the
    other has closed it and this one has not yet noticed."""
    ends = {f"socket:[{f.socket.peer}]" for m in scene.members for f in m.files if f.socket and f.socket.peer}
    return any(e not in scene.held for e in ends - scene.targets)


def _mounts(pid: int) -> tuple[frozenset[int] | None, tuple[str, ...]]:
    """Mount ids of the namespace of ``pid`` (None when its root hides some of them), and where hugetlbfs is mounted."""
    ids, huge = set(), []
    try:
        whose = "self" if procfs.ns(pid, "mnt") == procfs.ns(os.getpid(), "mnt") else str(pid)
        with open(f"/proc/{whose}/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            for line in f:
                fields = line.split()
                ids.add(int(fields[0]))
                if fields[fields.index("-") + 1] == "hugetlbfs":
                    huge.append(fields[4])
        partial = whose != "self" and os.readlink(f"/proc/{pid}/root") != "/"
    except OSError:
        return None, ()  # a zombie has no mounts; those of a hidden process are not ours to see
    return None if partial else frozenset(ids), tuple(huge)


def _inner(pid: int) -> int:
    """The number of a process in its innermost pid namespace; 0 or -1 (nobody) stay."""
    if pid <= 0:
        return pid
    try:
        return procfs.status(pid).nspid[-1]
    except ProcessLookupError:
        return 0


def _threads(pid: int, guest: bool) -> list[int]:
    try:
        tids = procfs.threads(pid)
    except ProcessLookupError:
        return []
    return [n for t in tids if (n := _inner_thread(pid, t))] if guest else tids


def _inner_thread(pid: int, tid: int) -> int:
    try:
        return procfs.status(pid, tid).nspid[-1]
    except ProcessLookupError:
        return 0  # it ended meanwhile


def _memory(fields: dict[str, str]) -> int:
    """Bytes that have to travel: anonymous, shared and swapped out."""
    return sum(int(fields[k].split()[0]) * 1024 for k in ("RssAnon", "RssShmem", "VmSwap") if k in fields)


def _cpu(pids: list[int]) -> float:
    total = 0
    for p in pids:
        try:
            st = procfs.stat(p)
        except ProcessLookupError:
            continue
        total += st.utime + st.stime
    return total / TICKS


def _privileges(pid: int, status: procfs.Status) -> list[str]:
    """What an ordinary user could not have given the process."""
    out = [f"capabilities ({k})" for k in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status.fields.get(k, "0"), 16)]
    try:
        if (nice := procfs.stat(pid).nice) < 0:
            out.append(f"nice value {nice}")
        if (policy := os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK) not in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE):
            out.append(f"real-time scheduling (class {policy})")
        if (adj := procfs.oom_score_adj(pid)) < 0:
            out.append(f"it would be spared when memory runs out (oom_score_adj {adj})")
    except (ProcessLookupError, PermissionError):
        pass  # it has ended; or it may not be looked into, which is a reason already
    return out


def _pipes(scene: Scene, known: dict[str, int]) -> list[External]:
    """Pipes whose other end is outside of the tree (for guests: those that the keeper serves); all others travel inside the image.

    An end whose other end we see nowhere counts as well: its holder may be in a pid namespace above ours, and if there is none,
    the proxy passes on just that (end of file, or EPIPE).
    """
    holders: dict[str, list[list[int]]] = {}
    for m in scene.members:
        for f in m.files:
            if f.target.startswith("pipe:"):
                holders.setdefault(f.target, []).append([m.pid, f.fd])
    out: list[External] = []
    for target, inside in holders.items():
        if scene.guest and target not in known:
            continue
        others = scene.held.get(target, [])
        direction = pipe_direction(scene, target)
        if direction == "rw":
            continue  # both ends are inside; those that others hold too are among the reasons
        shared = direction == "r" and any("r" in h.access for h in others)
        out.append(External(known.get(target, len(out)), "pipe", target, direction, inside, shared, alone=not others))
    return out


def _terminal(scene: Scene, outer: list[int], known: dict[str, int]) -> list[External]:
    """The controlling terminal of the root, when it is a pseudo terminal that can be opened."""
    root = scene.root
    index = pts_index(root.tty_nr)
    if index < 0:
        return []
    holders: list[list[int]] = []
    paths = []
    for m, p in zip(scene.members, outer, strict=True):
        for f in m.files:
            if stat.S_ISCHR(f.mode) and (f.rdev == root.tty_nr or (f.rdev == DEV_TTY and m.tty_nr == root.tty_nr)):
                holders.append([m.pid, f.fd])
                if f.rdev == root.tty_nr:
                    paths.append(f"/proc/{p}/fd/{f.fd}")
    number = known.get("tty", max([e for k, e in known.items() if k != "tty"], default=-1) + 1 if scene.guest else _count_pipes(scene))
    for path in (*paths, f"/dev/pts/{index}" if not scene.guest else f"/proc/{outer[0]}/root/dev/pts/{index}"):
        try:
            # a new description: O_NONBLOCK on it does not reach the guest's own
            fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue  # revoked, hung up, or another devpts: try the next
        try:
            if os.fstat(fd).st_rdev != root.tty_nr:
                continue
            modes, size = termios.tcgetattr(fd), fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
        except (OSError, termios.error):
            continue  # hung up
        finally:
            os.close(fd)
        return [External(number, "tty", "tty", "rw", holders, index=index, termios=modes, winsize=size)]
    return []


def _count_pipes(scene: Scene) -> int:
    return len(_pipes(scene, {}))


def _shared_files(scene: Scene) -> list[SharedFile]:
    return [
        SharedFile(m.pid, f.fd, f.dev, f.ino, f.flags, f.pos)
        for m in scene.members
        for f in m.files
        if used_in_turns(f) and (m.pid, f.fd) in scene.same
    ]
