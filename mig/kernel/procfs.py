"""What /proc tells of a process, parsed once and typed.

A process that is gone is ``ProcessLookupError`` everywhere (reading /proc gives ``ENOENT`` or ``ESRCH``, by chance of timing).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

O_CLOEXEC = 0o2000000


@contextlib.contextmanager
def _of(pid: int) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as e:
        raise ProcessLookupError(3, f"no process {pid}") from e


def _read(pid: int, name: str) -> bytes:
    with _of(pid):
        return Path(f"/proc/{pid}/{name}").read_bytes()


@dataclass(frozen=True)
class Stat:
    """A line of /proc/PID/stat; times in clock ticks, rss in pages."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgid: int
    sid: int
    tty_nr: int
    tpgid: int
    flags: int
    minflt: int
    majflt: int
    utime: int
    stime: int
    cutime: int
    cstime: int
    nice: int
    num_threads: int
    start: int
    vsize: int
    rss: int
    processor: int

    @property
    def is_kernel_thread(self) -> bool:
        """PF_KTHREAD."""
        return bool(self.flags & 0x00200000)


def parse_stat(line: bytes) -> Stat:
    """As :func:`stat`, from the line: a comm may hold blanks, brackets and line ends, so the last ``)`` counts."""
    head, _, tail = line.rpartition(b")")
    pid, _, comm = head.partition(b"(")
    f = tail.split()
    n = [0, *map(int, f[1:])]  # n[k] is field k + 3 of proc_pid_stat(5)
    return Stat(
        pid=int(pid), comm=os.fsdecode(comm), state=f[0].decode(), ppid=n[1], pgid=n[2], sid=n[3], tty_nr=n[4], tpgid=n[5],
        flags=n[6], minflt=n[7], majflt=n[9], utime=n[11], stime=n[12], cutime=n[13], cstime=n[14], nice=n[16],
        num_threads=n[17], start=n[19], vsize=n[20], rss=n[21], processor=n[36],
    )  # fmt: skip


def stat(pid: int, tid: int | None = None) -> Stat:
    """/proc/PID/stat, or that of one of its threads."""
    return parse_stat(_read(pid, "stat" if tid is None else f"task/{tid}/stat"))


def state(pid: int) -> str | None:
    """The state letter (R S D T t Z …), None when there is no such process."""
    try:
        return stat(pid).state
    except ProcessLookupError:
        return None


@dataclass(frozen=True)
class Status:
    """What we use of /proc/PID/status.  Memory in bytes; signal sets are masks with bit ``sig - 1``; ``nspid`` ends with the innermost."""

    name: str
    tgid: int
    ppid: int
    tracer: int
    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    nspid: tuple[int, ...]
    threads: int
    rss: int
    sig_pending: int
    shd_pending: int
    sig_blocked: int
    sig_ignored: int
    sig_caught: int
    cap_effective: int
    no_new_privs: bool
    seccomp: int
    fields: dict[str, str] = field(repr=False)


def status(pid: int, tid: int | None = None) -> Status:
    """/proc/PID/status, or that of one of its threads; all of its lines are in ``fields``."""
    text = os.fsdecode(_read(pid, "status" if tid is None else f"task/{tid}/status"))
    d = {k: v.strip() for k, _, v in (line.partition(":") for line in text.split("\n"))}

    def ints(key: str) -> tuple[int, ...]:
        return tuple(int(x) for x in d.get(key, "").split())

    def mask(key: str) -> int:
        return int(d.get(key, "0"), 16)

    def four(key: str) -> tuple[int, int, int, int]:
        a, b, c, e = ints(key)
        return a, b, c, e

    return Status(
        name=d["Name"], tgid=int(d["Tgid"]), ppid=int(d["PPid"]), tracer=int(d["TracerPid"]),
        uids=four("Uid"), gids=four("Gid"), groups=ints("Groups"), nspid=ints("NSpid"), threads=int(d["Threads"]),
        rss=int(d["VmRSS"].split()[0]) * 1024 if "VmRSS" in d else 0,  # kernel threads and zombies have none
        sig_pending=mask("SigPnd"), shd_pending=mask("ShdPnd"), sig_blocked=mask("SigBlk"), sig_ignored=mask("SigIgn"),
        sig_caught=mask("SigCgt"), cap_effective=mask("CapEff"), no_new_privs=d.get("NoNewPrivs") == "1",
        seccomp=int(d.get("Seccomp", "0")), fields=d,
    )  # fmt: skip


def comm(pid: int) -> str:
    """The name of the leader's thread, at most 15 bytes."""
    return os.fsdecode(_read(pid, "comm")[:-1])


def cmdline(pid: int) -> list[bytes]:
    """argv as it stands in memory; empty for kernel threads, zombies, and programs that erased it."""
    b = _read(pid, "cmdline")
    return b.removesuffix(b"\0").split(b"\0") if b else []


def oom_score_adj(pid: int) -> int:
    """-1000 (never killed when memory runs out) to 1000 (first)."""
    return int(_read(pid, "oom_score_adj"))


def threads(pid: int) -> list[int]:
    """Thread ids, the leader first, as they are now."""
    with _of(pid):
        tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    return sorted(tids, key=lambda t: t != pid)


def children(pid: int) -> list[int]:
    """The children of all threads of ``pid``; exact only while those stand still."""
    out: list[int] = []
    for t in threads(pid):
        try:
            out += map(int, _read(pid, f"task/{t}/children").split())
        except ProcessLookupError:
            continue  # that thread ended meanwhile: its children are a sibling's by now, or init's
    return out


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants (zombies too), the root first and every parent before its children."""
    out = [pid]
    for p in out:  # grows while we walk it
        try:
            out += [c for c in children(p) if c not in out]
        except ProcessLookupError:
            if p == pid:
                raise
    return out


_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int, but: Iterable[int] = ()) -> float:
    """CPU seconds that ``pid``, all that lives below it and all that has ended below it have used; ``but``: without these processes."""
    total, left_out = 0, set(but)
    for p in tree(pid):
        if p not in left_out:
            with contextlib.suppress(ProcessLookupError):
                st = stat(p)
                total += st.utime + st.stime + st.cutime + st.cstime
    return total / _TICKS


@dataclass(frozen=True)
class Descriptor:
    """One open descriptor: where it leads, and what fdinfo says of the open file description."""

    fd: int
    target: str
    flags: int  # as open(2); O_CLOEXEC, which belongs to the descriptor, is left out
    cloexec: bool
    pos: int
    mnt_id: int
    ino: int
    extra: dict[str, list[str]] = field(repr=False)  # the further lines of fdinfo by key: lock, tfd, eventfd-count …


def descriptor(pid: int, fd: int) -> Descriptor:
    """Descriptor ``fd`` of ``pid``; raises ``ProcessLookupError`` when process or descriptor is gone."""
    with _of(pid):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        text = os.fsdecode(_read(pid, f"fdinfo/{fd}"))
    known: dict[str, int] = {"pos": 0, "flags": 0, "mnt_id": 0, "ino": 0}
    extra: dict[str, list[str]] = {}
    for line in text.splitlines():
        k, _, v = line.partition(":")
        if k in known and k not in extra:
            known[k] = int(v, 8 if k == "flags" else 10)
        else:
            extra.setdefault(k.strip(), []).append(v.strip())
    flags = known["flags"]
    return Descriptor(fd, target, flags & ~O_CLOEXEC, bool(flags & O_CLOEXEC), known["pos"], known["mnt_id"], known["ino"], extra)


def descriptors(pid: int) -> dict[int, Descriptor]:
    """All descriptors of ``pid``; one that is closed while we look is left out."""
    with _of(pid):
        fds = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    out: dict[int, Descriptor] = {}
    for fd in fds:
        try:
            out[fd] = descriptor(pid, fd)
        except ProcessLookupError:
            if state(pid) is None:
                raise
    return out


@dataclass(frozen=True)
class Mapping:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    perms: str
    offset: int
    dev: str
    ino: int
    path: str  # "" for anonymous memory; [heap], [stack], [vdso] …; " (deleted)" is kept

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def parse_mapping(line: str) -> Mapping:
    """A line of maps, or the head line of an entry of smaps."""
    f = line.rstrip("\n").split(None, 5)
    a, _, b = f[0].partition("-")
    return Mapping(int(a, 16), int(b, 16), f[1], int(f[2], 16), f[3], int(f[4]), f[5] if len(f) > 5 else "")


def maps(pid: int) -> list[Mapping]:
    """/proc/PID/maps."""
    # line ends inside of paths are written as \012, so lines are lines
    return [parse_mapping(line) for line in os.fsdecode(_read(pid, "maps")).split("\n") if line]


@dataclass(frozen=True)
class Syscall:
    """/proc/PID/task/TID/syscall of a thread that does not run: number -1 when it is not in a call."""

    nr: int
    args: tuple[int, ...]
    sp: int
    pc: int


def syscall(pid: int, tid: int) -> Syscall | None:
    """The call in which a thread waits; None while it runs."""
    f = _read(pid, f"task/{tid}/syscall").split()
    if f[0] == b"running":
        return None
    if f[0] == b"-1":
        return Syscall(-1, (), int(f[1], 16), int(f[2], 16))
    return Syscall(int(f[0]), tuple(int(x, 16) for x in f[1:7]), int(f[7], 16), int(f[8], 16))


def ns(pid: int, kind: str) -> int:
    """The inode number of a namespace of ``pid``: equal numbers are the same namespace."""
    with _of(pid):
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def host_pid(members: Iterable[int], pid_in_ns: int) -> int:
    """The pid, as we see it, of that one of ``members`` (e.g. a cgroup's) which is ``pid_in_ns`` in its innermost pid namespace.

    Raises ``ProcessLookupError`` when none is.
    """
    for p in members:
        try:
            if status(p).nspid[-1:] == (pid_in_ns,):
                return p
        except ProcessLookupError:
            continue  # ended meanwhile
    raise ProcessLookupError(3, f"no member is process {pid_in_ns} of its pid namespace")
