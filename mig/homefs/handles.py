"""Open files and directories of one mount, and where the guest's last write in each of them ended."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from mig.homefs import protocol as p

REMEMBERED = 4096
"""Closed files whose last position is kept: it is asked for after the guest has ended."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """An open file description of the guest, as a descriptor at home (so flock(2) and O_APPEND are home's own)."""

    fd: int
    node: int
    flags: int
    pid: int  # of the opener, as the host's keeper numbers processes
    key: tuple[int, int]  # st_dev, st_ino
    end: int = -1  # of the last write(2); -1: none yet
    written: float = 0.0  # wall time of that write
    flock_pid: int = -1  # who asked for a flock last; -1: nobody ever


@dataclass(slots=True, eq=False)
class OpenDirectory:
    """An open directory; the names are read at home at the first READDIR and at each rewind."""

    fd: int
    node: int
    names: list[tuple[bytes, int, int]] | None = None  # name, DT_ type, inode


@dataclass(slots=True)
class Positions:
    """Ends of last writes, newest per file for handles that are closed (of all mounts of one server)."""

    closed: OrderedDict[tuple[int, int], dict[str, Any]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, record: dict[str, Any]) -> None:
        """Remember the position of a handle that is being closed, unless the file's newest is newer."""
        key = (record["dev"], record["ino"])
        with self._lock:
            old = self.closed.get(key)
            if old is None or old["time"] <= record["time"]:
                self.closed[key] = record
                self.closed.move_to_end(key)
            while len(self.closed) > REMEMBERED:
                self.closed.popitem(last=False)

    def list(self) -> list[dict[str, Any]]:
        """All that is kept, oldest first."""
        with self._lock:
            return list(self.closed.values())


def counts_position(flags: int, mode: int) -> bool:
    """Whether a descriptor opened so has an offset that its writes move and that others may share."""
    return stat.S_ISREG(mode) and flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND


class HandleTable:
    """File handle number -> open file or directory; numbers are never used twice."""

    def __init__(self, mount: str, positions: Positions) -> None:
        self.files: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self._mount = mount
        self._positions = positions
        self._next = 1
        self._lock = threading.Lock()

    def add(self, opened: OpenFile | OpenDirectory) -> int:
        """A number for ``opened``, which is closed by :meth:`release`."""
        with self._lock:
            number = self._next
            self._next += 1
        if isinstance(opened, OpenFile):
            self.files[number] = opened
        else:
            self.directories[number] = opened
        return number

    def file(self, number: int) -> OpenFile:
        """Raises ``OSError`` (``EBADF``) when there is no such open file."""
        f = self.files.get(number)
        if f is None:
            raise OSError(errno.EBADF, "no such file handle")
        return f

    def directory(self, number: int) -> OpenDirectory:
        """Raises ``OSError`` (``EBADF``) when there is no such open directory."""
        d = self.directories.get(number)
        if d is None:
            raise OSError(errno.EBADF, "no such directory handle")
        return d

    def write(self, number: int, data: memoryview, offset: int, flags: int) -> int:
        """pwrite(2) at home; with O_APPEND home's end of file counts, whatever the offset."""
        f = self.file(number)
        n = os.pwrite(f.fd, data, offset)
        if not flags & p.WRITE_CACHE:  # what the kernel writes back for a mapping moves no offset
            f.end, f.written = offset + n, time.time()
        return n

    def release(self, number: int) -> OpenFile | OpenDirectory | None:
        """RELEASE: the last descriptor of the open file is closed; flocks go with it."""
        opened = self.files.pop(number, None)
        if opened is None:
            directory = self.directories.pop(number, None)
            if directory is not None:
                os.close(directory.fd)
            return directory
        record = self._record(number, opened)
        if record is not None:
            self._positions.keep({**record, "open": False})
        os.close(opened.fd)
        return opened

    def positions(self) -> list[dict[str, Any]]:
        """One record per open handle that has been written to (see :func:`counts_position`)."""
        records = [self._record(n, f) for n, f in list(self.files.items())]
        return [{**r, "open": True} for r in records if r is not None]

    def close(self) -> None:
        """Release everything."""
        for number in [*self.files, *self.directories]:
            self.release(number)

    def _record(self, number: int, f: OpenFile) -> dict[str, Any] | None:
        if f.end < 0 or not counts_position(f.flags, os.fstat(f.fd).st_mode):
            return None
        dev, ino = f.key
        return {"mount": self._mount, "fh": number, "pid": f.pid, "dev": dev, "ino": ino, "end": f.end, "time": f.written}
