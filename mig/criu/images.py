"""The few images that we read or change: file locks, pending signals, interrupted system calls, open files.

An image is two magic words, then entries of ``u32 size`` + protobuf.  Entries are changed as protobuf messages, so fields that this
version of pycriu does not know survive.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mig.criu import layout

_MAGIC_BYTES = 8

FL_POSIX, FL_FLOCK, FL_OFD, FL_LEASE = 1, 2, 1024, 32
NR_POLL, NR_NANOSLEEP, NR_FUTEX, NR_CLOCK_NANOSLEEP = 7, 35, 202, 230
DEV_TTY = 0x500
TCP_LISTEN = 10
BY_ITS_ALIAS = -1
_EINTR = 2**64 - 4
_NO_SYSCALL = 2**64 - 1
_PE_LAZY = 2


class InterruptedCall(Protocol):
    """What is needed of a call that a thread was in when it was frozen (see ``mig.deputy.mend``)."""

    @property
    def tid(self) -> int: ...
    @property
    def nr(self) -> int: ...


@dataclass(frozen=True)
class Lock:
    """One lock of ``filelocks.img``; ``flag`` is FL_*, ``type`` F_RDLCK/F_WRLCK; ``length`` 0 means to the end of the file."""

    flag: int
    type: int
    pid: int
    fd: int
    start: int = 0
    length: int = 0


@dataclass(frozen=True)
class ImageFile:
    """An open regular file: CRIU's id of the open description, path, open flags, position, size at the dump."""

    id: int
    name: str
    flags: int
    pos: int
    size: int


def read_entries(path: Path, cls: Any) -> tuple[bytes, list[Any]]:
    """The magic words and all entries of an image, as messages of class ``cls``; raises ``ValueError`` when it is cut short."""
    data = path.read_bytes()
    size = 4 if data[:4] == struct.pack("<I", layout.magic("INVENTORY")) else _MAGIC_BYTES  # the one image with a single magic word
    if len(data) < size:
        raise ValueError(f"{path} is cut short: {len(data)} bytes")
    return data[:size], _entries(path, data, size, cls)


def _entries(path: Path, data: bytes, at: int, cls: Any) -> list[Any]:
    entries = []
    while at < len(data):
        (n,) = struct.unpack_from("<I", data, at)
        if at + 4 + n > len(data):
            raise ValueError(f"{path} is cut short: entry of {n} bytes at offset {at}")
        entry = cls()
        entry.ParseFromString(data[at + 4 : at + 4 + n])
        entries.append(entry)
        at += 4 + n
    return entries


def _write(path: Path, magic: bytes, entries: Iterable[Any]) -> None:
    out = bytearray(magic)
    for e in entries:
        b = e.SerializeToString()
        out += struct.pack("<I", len(b)) + b
    fresh = path.with_suffix(".new")
    fresh.write_bytes(out)
    os.replace(fresh, path)


def locks(img_dir: str | os.PathLike[str]) -> list[Lock]:
    """The file locks that the tree held at the dump; empty when there were none."""
    path = Path(img_dir) / "filelocks.img"
    if not path.exists():
        return []
    _, entries = read_entries(path, layout.image("file_lock").file_lock_entry)
    return [Lock(e.flag, e.type, e.pid, e.fd, e.start, e.len) for e in entries]


def write_locks(img_dir: str | os.PathLike[str], held: Iterable[Lock]) -> None:
    """Replace the file locks that a restore will take."""
    entry = layout.image("file_lock").file_lock_entry
    _write(
        Path(img_dir) / "filelocks.img",
        struct.pack("<II", layout.magic("IMG_COMMON"), layout.magic("FILE_LOCKS")),
        [entry(flag=k.flag, type=k.type, pid=k.pid, fd=k.fd, start=k.start, len=k.length) for k in held],
    )


def pending_signals(img_dir: str | os.PathLike[str], pid: int) -> int:
    """Signals pending at the dump for the process or its first thread, as a mask (bit ``sig - 1``): they travel in the image.

    ``pid`` is the one of the images, that is, of the pid namespace in which the dump ran.
    """
    _, (core,) = read_entries(Path(img_dir) / f"core-{pid}.img", layout.image("core").core_entry)
    mask = 0
    for queue in (core.tc.signals_s, core.thread_core.signals_p):
        for entry in queue.signals:
            (sig,) = struct.unpack_from("<i", entry.siginfo)
            mask |= 1 << (sig - 1)
    return mask


def mend_interrupted(img_dir: str | os.PathLike[str], calls: Iterable[InterruptedCall]) -> list[int]:
    """Let system calls go on that CRIU turned into EINTR; returns the tids of the threads mended.

    CRIU cannot carry the kernel's restart_block, so a thread in nanosleep, clock_nanosleep, poll or a futex wait with a timeout would
    see EINTR without any signal.  Each such thread goes back to its ``syscall`` instruction: a sleep with what the kernel wrote as the
    remaining time; poll, and a sleep that did not ask for the remainder, with the whole time again (where it stood is known to the
    kernel alone).  ``calls``: what the threads were in while frozen *before* the dump, with the tids of the images.
    """
    cls, mended = layout.image("core").core_entry, []
    for call in calls:
        path = Path(img_dir) / f"core-{call.tid}.img"
        if call.nr not in (NR_POLL, NR_NANOSLEEP, NR_FUTEX, NR_CLOCK_NANOSLEEP) or not path.exists():
            continue
        magic, (core,) = read_entries(path, cls)
        regs = core.thread_info.gpregs
        if regs.ax != _EINTR:
            continue  # a call that CRIU restarts by itself
        regs.ip -= 2
        regs.ax, regs.orig_ax = call.nr, _NO_SYSCALL
        if call.nr == NR_NANOSLEEP and regs.si:
            regs.di = regs.si
        elif call.nr == NR_CLOCK_NANOSLEEP and regs.r10:
            regs.dx = regs.r10
        _write(path, magic, [core])
        mended.append(call.tid)
    return mended


def carry_sockets(img_dir: str | os.PathLike[str]) -> list[str]:
    """Make the unix sockets of the images fit for a restore; returns the names in the file system that the restore will remove and bind.

    CRIU finds the other end of a connection that waits to be accepted only if the listening socket comes first ("Peer ... unresolved").
    """
    path = Path(img_dir) / "files.img"
    magic, entries = read_entries(path, layout.image("fdinfo").file_entry)
    listening = [e for e in entries if e.HasField("usk") and e.usk.state == TCP_LISTEN]
    if listening and entries[: len(listening)] != listening:
        _write(path, magic, [*listening, *(e for e in entries if not (e.HasField("usk") and e.usk.state == TCP_LISTEN))])
    names = [(e.usk.name_dir, os.fsdecode(e.usk.name.removesuffix(b"\0"))) for e in entries if e.HasField("usk") and not e.usk.deleted]
    return sorted({os.path.join(directory or "/", name) for directory, name in names if name and name[0] != "\0"})


def not_lazy(img_dir: str | os.PathLike[str]) -> None:
    """Everything that the images hold is restored from them.

    CRIU marks all private anonymous pages as fit for lazy restore; a restore with lazy pages would then skip those that it did dump.
    """
    pagemap = layout.image("pagemap")
    for path in Path(img_dir).glob("pagemap-[0-9]*.img"):
        data = path.read_bytes()
        (head,) = struct.unpack_from("<I", data, _MAGIC_BYTES)
        first = _MAGIC_BYTES + 4 + head
        out = bytearray(data[:first])
        for e in _entries(path, data, first, pagemap.pagemap_entry):
            e.flags &= ~_PE_LAZY
            b = e.SerializeToString()
            out += struct.pack("<I", len(b)) + b
        path.write_bytes(out)


def exit_words(img_dir: str | os.PathLike[str], tids: Iterable[int]) -> list[tuple[int, int]]:
    """For each thread, what the kernel writes to when it ends: the address of its clear_child_tid and of its robust list's head (or 0)."""
    cls, out = layout.image("core").core_entry, []
    for tid in tids:
        path = Path(img_dir) / f"core-{tid}.img"
        if path.exists():
            _, (core,) = read_entries(path, cls)
            out.append((int(core.thread_info.clear_tid_addr), int(core.thread_core.futex_rla)))
    return out


def list_files(img_dir: str | os.PathLike[str]) -> list[ImageFile]:
    """The regular files and directories that the images hold open."""
    _, entries = read_entries(Path(img_dir) / "files.img", layout.image("fdinfo").file_entry)
    return [ImageFile(e.id, e.reg.name, e.reg.flags, e.reg.pos, e.reg.size) for e in entries if e.HasField("reg")]


def forget_sizes(img_dir: str | os.PathLike[str]) -> None:
    """Files that the images hold open may have grown or shrunk when they are restored, as they do under a process that only stands still.

    CRIU would refuse that.  What is mapped keeps its size: a program or library that was replaced meanwhile must not be run.
    """
    mm, mapped = layout.image("mm").mm_entry, set()
    for path in Path(img_dir).glob("mm-[0-9]*.img"):
        for e in read_entries(path, mm)[1]:
            mapped |= {e.exe_file_id, *(v.shmid for v in e.vmas)}
    path = Path(img_dir) / "files.img"
    magic, entries = read_entries(path, layout.image("fdinfo").file_entry)
    for e in entries:
        if e.HasField("reg") and e.reg.id not in mapped:
            e.reg.ClearField("size")
    _write(path, magic, entries)


def terminals(img_dir: str | os.PathLike[str]) -> dict[int, str]:
    """The terminals that the images hold open: N of ``/dev/pts/N`` to CRIU's name of it, as ``inherit_fd`` wants it.

    ``BY_ITS_ALIAS``: the controlling terminal, opened as ``/dev/tty``, which the dump left to the restore.
    """
    path = Path(img_dir) / "tty-info.img"
    if not path.exists():
        return {}
    _, entries = read_entries(path, layout.image("tty").tty_info_entry)
    return {
        e.pty.index if e.HasField("pty") else BY_ITS_ALIAS: f"tty[{e.rdev:x}:{e.dev:x}]"
        for e in entries
        if e.HasField("pty") or e.rdev == DEV_TTY
    }
