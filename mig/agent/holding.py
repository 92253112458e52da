"""The memory of the originals at home, until the guest has all of it.

The root's is left by the deputy's making to a holder; other members of the tree stand frozen in a cgroup of their own
(:class:`Members`).

The holder is a process that shares the old address space (see :mod:`mig.deputy.convert`).  The exec that makes the deputy ends the other
threads, and the kernel writes into the held memory when a thread ends: zero to its clear_child_tid, and a mark into each robust futex that
it holds.  Those pages are copied before, and served from the copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import struct
from typing import TYPE_CHECKING

from mig.criu import images
from mig.kernel import cgroup, pidfd, procfs
from mig.kernel.cgroup import Cgroup
from mig.memory.postcopy import PostCopy
from mig.model import ProcessId

if TYPE_CHECKING:
    from mig.agent.deputy_link import DeputyLink
    from mig.agent.home_source import HomeSource
    from mig.memory.page_source import PageSource

PAGE = 4096
PREFIX = "mig-held-"
_ROBUST_LIMIT = 2048
"""The kernel's own limit on the length of a robust list."""


async def keep_exit_writes(source: HomeSource) -> None:
    """Copy what the end of the original's threads will change; the process stands frozen.  Nothing to do for a full dump."""
    carrier = source.carrier
    if not isinstance(carrier, PostCopy) or carrier.source is None:
        return
    pages: dict[int, bytes] = {}
    memory = carrier.source
    for tid_word, robust in images.exit_words(source.img, procfs.threads(source.pid)):
        for addr in [a for a in (tid_word, *_robust_words(memory, robust)) if a]:
            page = addr & ~(PAGE - 1)
            with contextlib.suppress(OSError):
                pages.setdefault(page, memory.read(0, page, PAGE))
    if pages:
        await memory.save(0, pages)


def _robust_words(memory: PageSource, head: int) -> list[int]:
    """Addresses of the futex words in a robust list, as the kernel walks it."""
    out: list[int] = []
    if not head:
        return out
    try:
        entry, offset, pending = struct.unpack("<QqQ", memory.read(0, head, 24))
        seen = 0
        while entry & ~1 != head and seen < _ROBUST_LIMIT:
            out.append((entry & ~1) + offset)
            (entry,) = struct.unpack("<Q", memory.read(0, entry & ~1, 8))
            seen += 1
        if pending:
            out.append((pending & ~1) + offset)
    except (OSError, struct.error):
        pass  # the kernel stops there as well
    return out


class Members:
    """The descendants of a process that has left home, frozen where nothing thaws them; ``end`` when nobody needs their memory any more.

    The cgroup's name says whose they are, so that those of an agent that was killed are found (:mod:`mig.migration.sweep`).
    """

    def __init__(self, pids: list[int]) -> None:
        """Move them, frozen as they are, into the group.  Raises ``OSError``."""
        me = pidfd.identity(os.getpid())
        self.group = Cgroup(cgroup.root() / f"{PREFIX}{me.pid}-{me.start}")
        self.group.create()
        self.group.freeze()
        for p in pids:
            with contextlib.suppress(ProcessLookupError):
                self.group.add(p)

    async def end(self) -> None:
        """Kill them; idempotent."""
        if self.group.exists():
            await asyncio.to_thread(end_group, self.group)


def end_group(group: Cgroup) -> None:
    """Kill what is in such a group, and remove it; blocking."""
    group.kill()
    group.remove()


def owner(name: str) -> ProcessId | None:
    """The agent whose group of held members has this name; None for other names."""
    m = re.fullmatch(PREFIX + r"(\d+)-(\d+)", name)
    return ProcessId(int(m[1]), int(m[2]), pidfd.boot_id()) if m else None


async def let_go(holder: int, deputy: DeputyLink | None) -> None:
    """The guest has everything: end the holder, which frees the memory (0.1 s a GiB), and have the deputy wait for it."""
    if not holder:
        return
    try:
        fd = os.pidfd_open(holder)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(fd, gone.set)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        await asyncio.wait_for(gone.wait(), 30)
    except (ProcessLookupError, TimeoutError):
        pass
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    if deputy is not None:
        deputy.reap()
