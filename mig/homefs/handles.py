"""Open files and directories of one mount."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass

from mig.homefs.guest import READS, WRITES, Key


@dataclass(slots=True, eq=False)
class OpenFile:
    """An open file description of the guest, as a descriptor at home (so flock(2) and O_APPEND are home's own)."""

    fd: int
    node: int
    flags: int
    pid: int  # of the opener, as the host's keeper numbers processes
    key: Key
    flock_pid: int = -1  # who asked for a flock last; -1: nobody ever


@dataclass(slots=True, eq=False)
class OpenDirectory:
    """An open directory; the names are read at home at the first READDIR and at each rewind."""

    fd: int
    node: int
    key: Key
    names: list[tuple[bytes, int, int]] | None = None  # name, DT_ type, inode


class HandleTable:
    """File handle number -> open file or directory; numbers are never used twice."""

    def __init__(self) -> None:
        self.files: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
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

    def modes(self, key: Key) -> list[int]:
        """How this file or directory is open here, once for each handle."""
        with self._lock:
            files, directories = list(self.files.values()), list(self.directories.values())
        out = [(READS, WRITES, READS | WRITES)[f.flags & os.O_ACCMODE] for f in files if f.key == key]
        return out + [READS for d in directories if d.key == key]

    def write(self, number: int, data: memoryview, offset: int) -> int:
        """pwrite(2) at home; with O_APPEND home's end of file counts, whatever the offset."""
        return os.pwrite(self.file(number).fd, data, offset)

    def release(self, number: int) -> OpenFile | OpenDirectory | None:
        """RELEASE: the last descriptor of the open file is closed; flocks go with it."""
        opened = self.files.pop(number, None)
        if opened is None:
            directory = self.directories.pop(number, None)
            if directory is not None:
                os.close(directory.fd)
            return directory
        os.close(opened.fd)
        return opened

    def close(self) -> None:
        """Release everything."""
        for number in [*self.files, *self.directories]:
            self.release(number)
