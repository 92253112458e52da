"""System calls that Python's ``os`` lacks: one function a call, named and ordered as in its man page, ``OSError`` on failure.

``argtypes`` are set once at import, so this is safe to use from several threads.  Constants keep the kernel's spelling.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from typing import NoReturn

if platform.machine() != "x86_64":
    raise ImportError("mig knows the system call numbers of x86-64 only")

CLONE_NEWTIME = 0x00000080
CLONE_VM = 0x00000100
CLONE_FS = 0x00000200
CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

KCMP_FILE = 0
KCMP_VM = 1
KCMP_FILES = 2
KCMP_FS = 3
KCMP_SIGHAND = 4
KCMP_IO = 5
KCMP_SYSVSEM = 6

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

CLOSE_RANGE_UNSHARE = 2
CLOSE_RANGE_CLOEXEC = 4

SPLICE_F_NONBLOCK = 2

NR_pivot_root = 155
NR_tee = 276
NR_kcmp = 312
NR_userfaultfd = 323
NR_close_range = 436
NR_pidfd_getfd = 438
NR_process_madvise = 440


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.syscall.argtypes = [ctypes.c_long] + [ctypes.c_long] * 6
_libc.syscall.restype = ctypes.c_long
for _name in ("process_vm_readv", "process_vm_writev"):
    _f = getattr(_libc, _name)
    _f.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    _f.restype = ctypes.c_ssize_t


def oserror(call: str, path: str | os.PathLike[str] | None = None) -> NoReturn:
    """Raise the ``OSError`` that ``errno`` stands for, naming the call and, where there is one, the path."""
    e = ctypes.get_errno()
    raise OSError(e, f"{call}: {os.strerror(e)}", os.fspath(path) if path is not None else None)


def _syscall(name: str, number: int, *args: int) -> int:
    r = _libc.syscall(number, *args, *[0] * (6 - len(args)))
    if r < 0:
        oserror(name)
    return int(r)


def mount(
    source: str | os.PathLike[str], target: str | os.PathLike[str], fstype: str | None = None, flags: int = 0, data: str | None = ""
) -> None:
    """mount(2)."""
    src, dst = os.fsencode(source), os.fsencode(target)
    if _libc.mount(src, dst, fstype.encode() if fstype else None, flags, data.encode() if data else None) < 0:
        oserror("mount", target)


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        oserror("umount2", target)


def unshare(flags: int) -> None:
    """unshare(2): the calling thread's; a user or mount namespace needs a process of one thread."""
    if _libc.unshare(flags) < 0:
        oserror("unshare")


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2): by a namespace file or a pidfd; a mount namespace needs a process of one thread (``EINVAL``)."""
    if _libc.setns(fd, nstype) < 0:
        oserror("setns")


def pivot_root(new_root: str | os.PathLike[str], put_old: str | os.PathLike[str]) -> None:
    """pivot_root(2)."""
    new, old = (ctypes.create_string_buffer(os.fsencode(p)) for p in (new_root, put_old))
    if _libc.syscall(NR_pivot_root, ctypes.addressof(new), ctypes.addressof(old), 0, 0, 0, 0) < 0:
        oserror("pivot_root", new_root)


def prctl(option: int, *args: int) -> int:
    """prctl(2) with number arguments."""
    a = [*args, 0, 0, 0, 0][:4]
    r = _libc.prctl(option, *a)
    if r < 0:
        oserror("prctl")
    return int(r)


def pdeathsig(sig: int = signal.SIGKILL) -> None:
    """Have ``sig`` sent to us when the *thread* that forked us ends (0: never mind).  A set-id exec clears it."""
    prctl(PR_SET_PDEATHSIG, int(sig))


def set_name(name: str) -> None:
    """Our thread's name as in ``comm``; at most 15 bytes are kept."""
    b = ctypes.create_string_buffer(os.fsencode(name)[:15])
    prctl(PR_SET_NAME, ctypes.addressof(b))


def pidfd_getfd(pid: int, fd: int) -> int:
    """A duplicate, close-on-exec, of descriptor ``fd`` of process ``pid``: the same open file description."""
    pidfd = os.pidfd_open(pid)
    try:
        return _syscall("pidfd_getfd", NR_pidfd_getfd, pidfd, fd, 0)
    finally:
        os.close(pidfd)


def process_madvise(pidfd: int, address: int, length: int, advice: int) -> int:
    """process_madvise(2) for one range; bytes advised."""
    v = _Iovec(address, length)
    return _syscall("process_madvise", NR_process_madvise, pidfd, ctypes.addressof(v), 1, advice, 0)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2); with ``CLOSE_RANGE_CLOEXEC`` the descriptors are only marked."""
    _syscall("close_range", NR_close_range, first, last, flags)


def kcmp(pid1: int, pid2: int, type: int, idx1: int = 0, idx2: int = 0) -> int:
    """kcmp(2): 0 when both are the same kernel object, else an order (1, 2) or 3 for "different"."""
    return _syscall("kcmp", NR_kcmp, pid1, pid2, type, idx1, idx2)


def userfaultfd(flags: int) -> int:
    """userfaultfd(2): a descriptor; EPERM where neither CAP_SYS_PTRACE nor the sysctl allows faults of the kernel."""
    return _syscall("userfaultfd", NR_userfaultfd, flags)


def tee(fd_in: int, fd_out: int, n: int, flags: int = 0) -> int:
    """Duplicate up to ``n`` bytes of the pipe ``fd_in`` into the pipe ``fd_out``, consuming none; returns how many, 0 at the end of file.

    Raises ``BlockingIOError`` with SPLICE_F_NONBLOCK when there is nothing now, or no room.
    """
    return _syscall("tee", NR_tee, fd_in, fd_out, n, flags)


def syncfs(fd: int) -> None:
    """Write out the file system that ``fd`` lies on."""
    if _libc.syncfs(fd) < 0:
        oserror("syncfs")


def process_vm_readv(pid: int, addr: int, n: int) -> bytes:
    """``n`` bytes of another process's memory; raises ``OSError`` (``EFAULT``) unless all of them could be read."""
    b = ctypes.create_string_buffer(n)
    _vm("process_vm_readv", pid, addr, b, n)
    return b.raw


def process_vm_writev(pid: int, addr: int, data: bytes) -> None:
    """Write ``data`` into another process's writable memory; raises ``OSError`` unless all of it was written."""
    _vm("process_vm_writev", pid, addr, ctypes.create_string_buffer(data, len(data)), len(data))


def _vm(name: str, pid: int, addr: int, buf: ctypes.Array[ctypes.c_char], n: int) -> None:
    local, remote = _Iovec(ctypes.addressof(buf), n), _Iovec(addr, n)
    k = getattr(_libc, name)(pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)
    if k < 0:
        oserror(name)
    if k != n:  # the kernel stops at the first page that it cannot touch
        raise OSError(14, f"{name}: {k} of {n} bytes at {addr:#x} in process {pid}")
