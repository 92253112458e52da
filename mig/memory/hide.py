"""Hiding memory from CRIU: the dump then does not grow with it, and the pages stay where they are, in the frozen process.

CRIU asks ``/proc/PID/pagemap`` which pages to dump: the shim in its process (``mig/criu/shim.c``) answers for the hidden ranges, which a
file tells it, that nothing is there.  Where it reads that file instead of asking (Linux before 6.7, CRIU before 4.0), it gets a sparse one
that has the true entries of all other areas.  ``smaps`` is replaced likewise, because the kernel walks every page table for it (8 ms/GiB)
and CRIU only reads the flags.

Only areas that are known to be safe are hidden; everything else is CRIU's, as in any dump.  A restore with ``--lazy-pages`` registers
private anonymous memory with userfaultfd, but not what is locked or made of huge pages: hiding that would silently restore zeros.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mig.kernel import pagemap as pages
from mig.kernel.procfs import Mapping, parse_mapping

PAGE = 4096
_ENTRY = 8
SMALL = 1 << 20
"""Bytes below which an area is left to CRIU: it costs less to dump than to fetch."""
LARGEST = 1 << 40
"""Bytes above which one is left to CRIU as well: our bookkeeping is not made for it."""
UNSAFE = frozenset(("lo", "ht", "dp", "gd", "io", "pf", "ss", "wf", "dc", "um"))
"""VmFlags: locked, huge pages, (gd) grows down: stacks are hot, device memory, shadow stack, wiped or left out in a child, registered with
a userfaultfd of its own."""
_ADDRESS_SPACE = 1 << 47
_WHOLE = 64 << 20


@dataclass(frozen=True)
class Area:
    """An entry of smaps: the mapping, its first line, its VmFlags line, and resident plus swapped bytes."""

    mapping: Mapping
    line: str
    flags: str
    size: int = 0

    @property
    def hidden(self) -> bool:
        """Whether it is safe, and worth it, to hide."""
        m = self.mapping
        if m.ino or m.perms[3] != "p" or m.perms[0] != "r" or not SMALL <= m.size <= LARGEST:
            return False
        if m.path not in ("", "[heap]") and not m.path.startswith("[anon:"):
            return False
        return not UNSAFE & set(self.flags.split()[1:])


def parse_smaps(text: str) -> list[Area]:
    """The areas of a smaps text; one without VmFlags (a kernel that does not print them) is never hidden."""
    out: list[Area] = []
    head, flags, size = "", "VmFlags: lo", 0
    for line in text.split("\n"):
        name, _, rest = line.partition(":")
        if name == "VmFlags":
            flags = line
        elif name in ("Rss", "Swap"):
            size += int(rest.split()[0]) * 1024
        elif "-" in line[:18] and line[0] in "0123456789abcdef":
            if head:
                out.append(Area(parse_mapping(head), head, flags, size))
            head, flags, size = line, "VmFlags: lo", 0
    if head:
        out.append(Area(parse_mapping(head), head, flags, size))
    return out


def read_areas(pid: int) -> list[Area]:
    """smaps of a process, slow with much memory; raises ``ProcessLookupError``."""
    try:
        return parse_smaps(os.fsdecode(Path(f"/proc/{pid}/smaps").read_bytes()))
    except FileNotFoundError as e:
        raise ProcessLookupError(3, f"no process {pid}") from e


def hideable(pids: Iterable[int]) -> int:
    """Bytes of memory of these processes that could be hidden now; a process that has ended has none."""
    total = 0
    for pid in pids:
        try:
            total += sum(a.size for a in read_areas(pid) if a.hidden)
        except ProcessLookupError:
            continue
    return total


def refresh(before: list[Area], maps: str) -> list[Area] | None:
    """The areas of a process that stands still now, from what was read ``before`` and its ``maps``; None: something is new, read again.

    Heap and stack keep their flags as they grow.
    """
    known = {a.line: a for a in before}
    growing = {(a.mapping.perms, a.mapping.path): a for a in before if a.mapping.path in ("[heap]", "[stack]")}
    out = []
    for line in maps.split("\n"):
        if not line:
            continue
        area = known.get(line)
        if area is None:
            m = parse_mapping(line)
            like = growing.get((m.perms, m.path))
            if like is None:
                return None
            area = Area(m, line, like.flags)
        out.append(area)
    return out


def write_fakes(pid: int, areas: list[Area], directory: int, *, reads: bool) -> list[tuple[int, int]]:
    """Make ``sm.PID``, and ``hd.PID`` or, for a CRIU that reads the page map, ``pm.PID`` in the directory (a descriptor), for a process
    that stands still; returns what is hidden."""
    hidden = [(a.mapping.start, a.mapping.end) for a in areas if a.hidden]
    if reads:
        _write_pagemap(pid, areas, directory)
    else:
        with _new(f"hd.{pid}", directory) as f:
            f.write(b"".join(struct.pack("=QQ", *r) for r in hidden))
    with _new(f"sm.{pid}", directory) as f:
        f.write(os.fsencode("".join(f"{a.line}\n{a.flags}\n" for a in areas)))
    return hidden


def _new(name: str, directory: int) -> BinaryIO:
    return os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=directory), "wb")


def _write_pagemap(pid: int, areas: list[Area], directory: int) -> None:
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    fake = os.open(f"pm.{pid}", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        for a in areas:
            m = a.mapping
            if a.hidden or m.start >= _ADDRESS_SPACE:
                continue
            # reserved but unused areas can be of any size
            for start, end in [(m.start, m.end)] if m.size <= _WHOLE else pages.populated(pagemap, m.start, m.end):
                _copy(pagemap, fake, start, end)
        os.ftruncate(fake, _ADDRESS_SPACE // PAGE * _ENTRY)
    finally:
        os.close(pagemap)
        os.close(fake)


def _copy(pagemap: int, fake: int, start: int, end: int) -> None:
    for at in range(start, end, _WHOLE):
        entries = os.pread(pagemap, (min(end, at + _WHOLE) - at) // PAGE * _ENTRY, at // PAGE * _ENTRY)
        if entries.count(0) != len(entries):
            os.pwrite(fake, entries, at // PAGE * _ENTRY)


def remove_fakes(pids: Iterable[int], directory: int) -> None:
    """Take them away again."""
    for pid in pids:
        for name in (f"pm.{pid}", f"hd.{pid}", f"sm.{pid}"):
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue
