"""The mounts of a cell: home's tree with its own /proc, /dev and /.cell on a host; only /proc (and a terminal's /dev/pts) at home.

All this happens in the mount namespace of the cell, so it ends with the cell's last process.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mig.cell.spec import CellError, CellSpec
from mig.kernel import libc

KDAT = "/run/criu.kdat"
"""CRIU's cache of what the kernel can do: without it each restore looks again (22 ms)."""

TOOLBOX = "/.cell"
"""On a host: ``criu/``, ``cg/`` (the cgroup of the guest) and ``tmp/``, hidden from directory listings by home's file server."""

_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_HIDDEN = ("kcore", "kmsg", "keys", "sysrq-trigger", "timer_list", "kpagecount", "kpageflags", "kpagecgroup", "mtrr", "slabinfo")
_READ_ONLY = ("sys", "irq", "bus", "fs", "driver")
_DEVPTS = "newinstance,ptmxmode=0666,mode=620,gid=5"


def furnish(spec: CellSpec, guest_cgroup: Path) -> str:
    """Mount everything; the caller is pid 1 of the cell in a new mount namespace.  Returns the future root (``""`` at home)."""
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    if spec.mode == "home":
        libc.mount("proc", "/proc", "proc")
        if spec.terminal is not None:
            # an instance of its own: only there the terminal can have the number that the real one has outside
            libc.mount("devpts", "/dev/pts", "devpts", 0, _DEVPTS)
        return ""
    root = spec.root
    if not os.path.ismount(root):
        raise CellError("mounts", f"{root} is not a mount point: home's files are not there")
    libc.mount("proc", root + "/proc", "proc")
    _hide(root + "/proc")
    _devices(root + "/dev")
    _toolbox(root + TOOLBOX, spec.criu_dir, guest_cgroup)
    if os.path.exists(KDAT):  # CRIU makes it only where /run is a tmpfs
        libc.mount(KDAT, root + KDAT, None, libc.MS_BIND)
    # pid 1 works with the cell's processes before the root changes
    libc.mount("proc", "/proc", "proc")
    return root


def enter(root: str) -> None:
    """Make ``root`` the root of every process of this mount namespace, CRIU's worker included, and let go of the node's tree.

    pivot_root moves the root and working directory of those whose root and working directory are the old root.
    """
    os.chdir(root)
    libc.pivot_root(".", f".{TOOLBOX}/old")
    os.chdir("/")
    libc.umount2(TOOLBOX + "/old", libc.MNT_DETACH)
    os.rmdir(TOOLBOX + "/old")


def _devices(dev: str) -> None:
    libc.mount("tmpfs", dev, "tmpfs", libc.MS_NOSUID, "mode=755")
    for name, major, minor in _NODES:
        os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)  # mknod's mode goes through the umask
    for name, target in _LINKS:
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(dev + "/pts")
    os.mkdir(dev + "/shm")
    libc.mount("devpts", dev + "/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, _DEVPTS)
    libc.mount("tmpfs", dev + "/shm", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=1777")


def _hide(proc: str) -> None:
    """What root could do harm with to this node: CRIU opens a guest's files as root, and a link of home's may lead anywhere."""
    for name in _HIDDEN:
        if os.path.exists(f"{proc}/{name}"):
            libc.mount("/dev/null", f"{proc}/{name}", None, libc.MS_BIND)
    for name in _READ_ONLY:
        if os.path.exists(f"{proc}/{name}"):
            libc.mount(f"{proc}/{name}", f"{proc}/{name}", None, libc.MS_BIND | libc.MS_REC)
            libc.mount("none", f"{proc}/{name}", None, libc.MS_BIND | libc.MS_REMOUNT | libc.MS_RDONLY | libc.MS_NOSUID)


def _toolbox(at: str, criu_dir: Path, guest_cgroup: Path) -> None:
    """What a dump from inside needs and home's tree may lack: CRIU with its libraries, the guest's freezer, a scratch directory."""
    libc.mount("tmpfs", at, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=711")
    for name in ("criu", "cg", "tmp", "old"):
        os.mkdir(f"{at}/{name}")
    libc.mount(criu_dir, f"{at}/criu", None, libc.MS_BIND | libc.MS_REC)
    # CRIU takes any directory with the files of a v2 cgroup for one
    libc.mount(guest_cgroup, f"{at}/cg", None, libc.MS_BIND)
