"""Where the images of one move are put: a directory in memory with room for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mig import paths
from mig.errors import MoveFailed
from mig.kernel import pidfd
from mig.model import ProcessId

CANDIDATES = (paths.WORK, Path("/dev/shm/mig"), Path("/var/tmp/mig"))
"""In this order: /run and /dev/shm are memory; /var/tmp is slower and roomy."""
DISK = paths.STATE / "stored"
"""Where the images of stored guests are put; of no use after a boot, since the home agent and the process at home are gone then."""
LEFT_ON_DISK = 0.05
"""Part of that file system that must stay free."""
MARGIN = 64 << 20
"""Bytes beside the memory itself: everything that CRIU writes but pages, ghost files included."""
_OWNER = "owner"


def make(mid: str, side: str, need: int) -> Path:
    """A new directory for ``need`` bytes of images; raises :class:`MoveFailed` when no place has the room."""
    for base in CANDIDATES:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        v = os.statvfs(base)
        if v.f_bavail * v.f_frsize >= need + MARGIN:
            return _made(base / f"{mid}.{side}")
    places = ", ".join(str(c) for c in CANDIDATES)
    hint = "free some memory, or enlarge /run (mount -o remount,size=...)"
    raise MoveFailed(f"no room for {need >> 20} MiB of images in any of {places}", hint=hint)


def make_on_disk(mid: str, need: int) -> Path:
    """A new directory for images that may lie for days; raises :class:`MoveFailed` when the disk has not the room."""
    DISK.mkdir(mode=0o700, parents=True, exist_ok=True)
    v = os.statvfs(DISK)
    if v.f_bavail * v.f_frsize < need + MARGIN + LEFT_ON_DISK * v.f_blocks * v.f_frsize:
        raise MoveFailed(f"no room for {need >> 20} MiB of images in {DISK}", hint="free some space on that disk")
    return _made(DISK / f"{mid}.destination")


def _made(d: Path) -> Path:
    shutil.rmtree(d, ignore_errors=True)
    (d / "img").mkdir(parents=True)
    me = pidfd.identity(os.getpid())
    (d / _OWNER).write_text(f"{me.pid} {me.start} {me.boot}")
    return d


def owner(d: Path) -> ProcessId | None:
    """The process that made this directory; None while it is just being made or removed."""
    try:
        pid, start, boot = (d / _OWNER).read_text().split()
    except (OSError, ValueError):
        return None
    return ProcessId(int(pid), int(start), boot)
