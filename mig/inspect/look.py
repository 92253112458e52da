"""Reading one process of a tree from /proc, as far as it matters for a move."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from mig import paths
from mig.inspect import sockets
from mig.inspect.scene import Mapping, Member, OpenFile
from mig.kernel import libc, procfs

_FILES_GONE = (errno.ECONNABORTED, errno.ENOTCONN)
"""What a FUSE mount says whose server has gone."""
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")
OUR_PROGRAMS = {"omdiscd": "omdiscd", "moslab": "moslab", "criu": "criu"}
OUR_MODULES = {
    "mig.agent.main": "a home agent",
    "mig.agent.fileserver": "a home agent's file server",
    "mig.cell.keeper": "a keeper",
    "omdiscd.command": "omdiscd",
    "omtools.moslab.cli": "moslab",
}


def member(pid: int, *, guest: bool, diag: sockets.UnixDiag) -> Member:
    """What there is to see of ``pid`` (a number of our own pid namespace); raises ``ProcessLookupError`` when it is gone."""
    st, status = procfs.stat(pid), procfs.status(pid)

    def inner(key: str, outer: int) -> int:
        """The number in the process's innermost pid namespace; 0 where what is meant is not in there."""
        return int(status.fields[key].split()[-1]) if guest and key in status.fields else outer

    base = Member(
        pid=inner("NSpid", pid),
        comm=st.comm,
        ppid=st.ppid,
        pgid=inner("NSpgid", st.pgid),
        sid=inner("NSsid", st.sid),
        state=st.state,
        tty_nr=st.tty_nr,
        threads=status.threads,
        tracer=status.tracer,
        kernel_thread=st.is_kernel_thread,
    )
    if st.is_kernel_thread or st.state in "ZX" or pid == 1:
        return base
    try:
        return _inside(base, pid, st.ppid, guest=guest, diag=diag)
    except PermissionError:
        # root too may look only into processes that have no capability which it lacks itself
        return Member(**{**vars(base), "hidden": True})


def _inside(base: Member, pid: int, ppid: int, *, guest: bool, diag: sockets.UnixDiag) -> Member:
    exe, ghost, bits = _program(pid)
    return Member(
        **{
            **vars(base),
            "namespaces": () if guest else tuple(n for n in NAMESPACES if procfs.ns(pid, n) != procfs.ns(os.getpid(), n)),
            "bits": bits,
            "role": _role(pid, exe),
            "borrows_memory_of": _borrows(pid, ppid),
            "exe": exe,
            "exe_ghost": ghost,
            "files": tuple(f for d in procfs.descriptors(pid).values() if (f := open_file(pid, d, diag, guest=guest)) is not None),
            "mappings": tuple(_mappings(pid)),
        }
    )


def open_file(pid: int, d: procfs.Descriptor, diag: sockets.UnixDiag, *, guest: bool = False) -> OpenFile | None:
    """A descriptor with what its kind needs; None when it was closed while we looked."""
    f = OpenFile(d.fd, d.target, d.flags, d.pos, d.mnt_id)
    try:
        if d.target.startswith("socket:["):
            return OpenFile(**{**vars(f), "socket": sockets.look(pid, d.fd, d.target, diag)})
        if d.target.startswith("anon_inode:"):
            watched = d.extra.get("NSpid" if guest else "Pid", ["0"])[0].split()
            return OpenFile(**{**vars(f), "watched_pid": int(watched[-1]) if watched else -1})
        if not d.target.startswith("/"):
            return f
        s = os.stat(f"/proc/{pid}/fd/{d.fd}")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as e:
        if e.errno == errno.EBADF or e.errno in _FILES_GONE:  # closed meanwhile, as pidfd_getfd tells; behind a dead mount: CRIU will say
            return None
        raise
    return OpenFile(
        **{
            **vars(f),
            "mode": s.st_mode,
            "dev": s.st_dev,
            "ino": s.st_ino,
            "rdev": s.st_rdev,
            "nlink": s.st_nlink,
            "disk": s.st_blocks * 512,
            "tty_index": int(d.extra.get("tty-index", ["-1"])[0]),
        }
    )


def _program(pid: int) -> tuple[str, int, int]:
    """(path, bytes on disk if deleted, 32 or 64 bit) of the executable."""
    link = f"/proc/{pid}/exe"
    try:
        exe = os.readlink(link)
        with open(link, "rb") as f:
            bits = 32 if f.read(5)[4:] == b"\x01" else 64  # EI_CLASS of the ELF header
            ghost = os.fstat(f.fileno()).st_blocks * 512 if exe.endswith(" (deleted)") else 0
    except FileNotFoundError:
        return "", 0, 64  # it is ending
    except OSError as e:
        if e.errno not in _FILES_GONE:
            raise
        return "", 0, 64  # a guest from elsewhere, that ends as its home's files are gone
    return exe.removesuffix(" (deleted)"), ghost, bits


def _role(pid: int, exe: str) -> str:
    """Which of our own processes it is, or nothing.  The command line counts, not the name: ``vim omdiscd.toml`` is a user's."""
    if os.path.basename(exe) == "deputy" and os.path.dirname(exe) == str(paths.libexec().resolve()):
        return "deputy"
    argv = [os.fsdecode(a) for a in procfs.cmdline(pid)]
    if not argv:
        return ""
    if "swrk" in argv and any(os.path.basename(a) == "criu" for a in argv):
        return "criu"
    program = os.path.basename(argv[0])
    if program.startswith("python"):
        rest = argv[1:]
        while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c"):
            rest = rest[1:]
        if rest[:1] == ["-m"]:
            return OUR_MODULES.get(rest[1], "") if len(rest) > 1 else ""
        program = os.path.basename(rest[0]) if rest and "/" in rest[0] else ""
    return OUR_PROGRAMS.get(program, "")


def _borrows(pid: int, ppid: int) -> str:
    """The process whose memory ``pid`` shares while its parent waits in vfork, or nothing."""
    try:
        if ppid and libc.kcmp(pid, ppid, libc.KCMP_VM) == 0:
            return f"its parent, {procfs.comm(ppid)} ({ppid})"
    except OSError:
        pass  # the parent is gone or not ours to look at: then it is not between vfork and exec
    return ""


def _mappings(pid: int) -> list[Mapping]:
    out: dict[tuple[str, int], Mapping] = {}
    for v in procfs.maps(pid):
        shared, gone = v.perms[3] == "s", v.path.endswith(" (deleted)")
        if not v.path or v.path[0] == "[" or not (shared or gone or v.path.startswith(("/dev/", "anon_inode:"))):
            continue
        disk = 0
        if gone and not shared:
            with contextlib.suppress(OSError):  # unmapped meanwhile, or a kernel without map_files for us: then it is not too large
                s = os.stat(f"/proc/{pid}/map_files/{v.start:x}-{v.end:x}")
                disk = s.st_blocks * 512 if stat.S_ISREG(s.st_mode) else 0
        major, _, minor = v.dev.partition(":")
        key = v.path, v.ino
        writable = "w" in v.perms or (key in out and out[key].writable)
        out[key] = Mapping(v.path, shared, writable, (int(major, 16), int(minor, 16)), v.ino, disk)
    return list(out.values())
