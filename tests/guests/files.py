"""files.py DIRECTORY [flock] [posix]: a guest with many kinds of open files, all made in DIRECTORY, which knows what must be in each.

Lines on standard output are numbered as those of the C programs.  Commands, a line each: ``state`` (verify everything, then change
everything), ``import NAME`` (import a module not used before), ``quit STATUS``.  End of file: status 7.  A violation: status 3.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import itertools
import mmap
import os
import sys
from collections.abc import Callable

PAGE = mmap.PAGESIZE
_numbers = itertools.count()


def say(*words: object) -> None:
    """One numbered line."""
    sys.stdout.write(f"{next(_numbers):08d} {' '.join(map(str, words))}\n")
    sys.stdout.flush()


def check(what: str, got: object, expected: object) -> None:
    """End with status 3 unless both are equal."""
    if got != expected:
        say("ERROR", what, "is", repr(got), "instead of", repr(expected))
        os._exit(3)


class Files:
    """The files, and how often they were changed (``round``)."""

    def __init__(self, directory: str, locks: list[str]) -> None:
        os.makedirs(directory, exist_ok=True)
        os.chdir(directory)
        self.directory, self.round = directory, 0
        self.lines = [b"line %06d\n" % i for i in range(10000)]
        with open("lines", "wb") as f:
            f.write(b"".join(self.lines))
        self.reading = os.open("lines", os.O_RDONLY)
        self.log = open("log", "ab", buffering=0)  # noqa: SIM115  # these stay open as long as the guest lives
        self.log_before = os.path.getsize("log")
        self.fixed = open("fixed", "w+b", buffering=0)  # noqa: SIM115
        self.fixed.write(bytes(PAGE))
        self.unlinked = open("unlinked", "w+b", buffering=0)  # noqa: SIM115
        self.unlinked.write(b"ghost 0")
        os.unlink("unlinked")
        self.renamed = open("old-name", "w+b", buffering=0)  # noqa: SIM115
        self.renamed.write(b"moved")
        os.rename("old-name", "new-name")
        self.duplicate = os.dup(self.fixed.fileno())  # one description, two descriptors
        self.listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        with open("shared", "wb") as f:
            f.write((b"%08d" % 0).ljust(PAGE, b"\0") * 2)
        self.shared_fd = os.open("shared", os.O_RDWR)
        self.shared = mmap.mmap(self.shared_fd, 2 * PAGE, flags=mmap.MAP_SHARED)
        self.private_fd = os.open("lines", os.O_RDONLY)
        self.private = mmap.mmap(self.private_fd, 2 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.private[:5] = b"DIRTY"
        self.anonymous = bytearray(os.urandom(1 << 20)) * 4
        self.digest = hashlib.sha256(self.anonymous).hexdigest()
        self.locked: list[int] = []
        for kind in locks:
            fd = os.open(kind, os.O_RDWR | os.O_CREAT, 0o644)
            lock: Callable[[int, int], None] = fcntl.flock if kind == "flock" else fcntl.lockf
            lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.locked.append(fd)

    def verify(self) -> None:
        """Everything is as the last :meth:`change` left it."""
        n = self.round
        check("working directory", os.getcwd(), self.directory)
        check("offset of the file that is read", os.lseek(self.reading, 0, os.SEEK_CUR), n * len(self.lines[0]))
        check("log", os.path.getsize("log") - self.log_before, n * len(b"entry 000000\n"))
        check("offset of a duplicated descriptor", os.lseek(self.duplicate, 0, os.SEEK_CUR), PAGE + n)
        check("unlinked file", os.pread(self.unlinked.fileno(), 100, 0), b"ghost %d" % n)
        check("links of the unlinked file", os.fstat(self.unlinked.fileno()).st_nlink, 0)
        check("renamed file", os.pread(self.renamed.fileno(), 100, 0), b"moved")
        check("inode of the renamed file", os.stat("new-name").st_ino, os.fstat(self.renamed.fileno()).st_ino)
        check("shared mapping", self.shared[:8], b"%08d" % n)
        check("shared mapping's second page", self.shared[PAGE : PAGE + 8], b"%08d" % n)
        check("private mapping", self.private[:5], b"DIRTY")
        check("private mapping's clean page", self.private[PAGE : 2 * PAGE], b"".join(self.lines)[PAGE : 2 * PAGE])
        check("directory", "new-name" in os.listdir(self.listing), True)
        check("anonymous memory", hashlib.sha256(self.anonymous).hexdigest(), self.digest)

    def change(self) -> None:
        """Read, write, append, map: once each."""
        n = self.round
        check("line read", os.read(self.reading, len(self.lines[0])), self.lines[n])
        self.log.write(b"entry %06d\n" % n)
        os.write(self.duplicate if n % 2 else self.fixed.fileno(), b"x")
        os.pwrite(self.unlinked.fileno(), b"ghost %d" % (n + 1), 0)
        self.shared[:8] = self.shared[PAGE : PAGE + 8] = b"%08d" % (n + 1)
        self.shared.flush()
        with open("shared", "rb") as f:
            check("shared file by its name", f.read(8), b"%08d" % (n + 1))
        with open(f"new-{n}", "xb") as f:
            f.write(b"new")
        self.round += 1


def main() -> int:
    """Open everything, then obey."""
    files = Files(os.path.abspath(sys.argv[1]), sys.argv[2:])
    say("ready", f"pid={os.getpid()}")
    while line := sys.stdin.readline():
        match line.split():
            case ["state"]:
                files.verify()
                files.change()
                files.verify()
                say("state", files.round, "fine")
            case ["import", name]:
                say("imported", importlib.import_module(name).__name__)
            case ["quit", status]:
                say("bye")
                return int(status)
            case _:
                say("unknown command:", line.strip())
    say("eof")
    return 7


if __name__ == "__main__":
    sys.exit(main())
