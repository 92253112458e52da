"""Who else on this machine holds what a tree holds: one pass over /proc, and only for what can be shared with effect."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator

from mig.inspect.reasons import DEV_PTMX
from mig.inspect.scene import Holder, Mapping, Member, OpenFile
from mig.kernel import libc, procfs


class Around:
    """Holders outside of a tree; see :class:`~mig.inspect.scene.Scene` for the maps."""

    def __init__(self, members: tuple[Member, ...], ignore: Collection[int]) -> None:
        self.held: dict[str, list[Holder]] = {}
        self.same: dict[tuple[int, int], list[Holder]] = {}
        self.mapped: dict[tuple[tuple[int, int], int], list[Holder]] = {}
        self._inside = {m.pid for m in members} | set(ignore)
        self._by_name: dict[str, OpenFile | None] = {}  # targets of which any holder counts
        self._by_file: dict[str, list[tuple[int, OpenFile]]] = {}  # targets of which holders of the same description count
        self._ptys: dict[int, str] = {}
        self._memory: dict[bytes, Mapping] = {}
        for m in members:
            self._want(m)
        if self._by_name or self._by_file:
            self._scan_descriptors()
        if self._memory:
            self._scan_maps()

    def _want(self, m: Member) -> None:
        for f in m.files:
            if deleted(f) or f.target.startswith("pipe:") or stat.S_ISFIFO(f.mode) or f.target.startswith("/memfd:"):
                self._by_name[f.target] = f
            elif f.socket is not None:
                self._by_name[f.target] = f
                if f.socket.peer:
                    self._by_name[f"socket:[{f.socket.peer}]"] = None
            elif f.target.startswith("anon_inode:") or used_in_turns(f):
                self._by_file.setdefault(f.target, []).append((m.pid, f))
            elif f.rdev == DEV_PTMX and stat.S_ISCHR(f.mode):
                self._by_file.setdefault(f.target, []).append((m.pid, f))
                slave = f"/dev/pts/{f.tty_index}"
                self._by_name[slave] = None
                self._ptys[os.makedev(136, f.tty_index)] = slave
        for v in m.mappings:
            if v.shared and v.ino and (v.writable or v.path.startswith(("/dev/zero", "/memfd:", "/dev/shm/"))):
                self._memory[b"%02x:%02x %d " % (*v.dev, v.ino)] = v

    def _outside(self) -> Iterator[int]:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in self._inside:
                yield int(name)

    def _scan_descriptors(self) -> None:
        for pid in self._outside():
            directory = f"/proc/{pid}/fd"
            try:
                fds = os.listdir(directory)
            except OSError:
                continue  # it ended, or is not ours to look at
            for fd in fds:
                try:
                    target = os.readlink(f"{directory}/{fd}")
                    if target in self._by_name:
                        self._found_name(pid, int(fd), target)
                    elif target in self._by_file:
                        self._found_file(pid, int(fd), target)
                except OSError:
                    continue  # closed meanwhile
            if self._ptys:
                self._found_terminal(pid)

    def _found_name(self, pid: int, fd: int, target: str) -> None:
        link = f"/proc/{pid}/fd/{fd}"
        ours = self._by_name[target]
        if ours is not None and ours.mode:
            s = os.stat(link)
            if (s.st_dev, s.st_ino) != (ours.dev, ours.ino):
                return  # another file of that name, or another mount namespace
        bits = os.lstat(link).st_mode  # the link's own permissions tell how it was opened
        access = ("r" if bits & stat.S_IRUSR else "") + ("w" if bits & stat.S_IWUSR else "")
        self.held.setdefault(target, []).append(Holder(pid, procfs.comm(pid), fd, access))

    def _found_file(self, pid: int, fd: int, target: str) -> None:
        for owner, f in self._by_file[target]:
            if libc.kcmp(owner, pid, libc.KCMP_FILE, f.fd, fd) == 0:
                self.same.setdefault((owner, f.fd), []).append(Holder(pid, procfs.comm(pid), fd))

    def _found_terminal(self, pid: int) -> None:
        try:
            st = procfs.stat(pid)
        except ProcessLookupError:
            return
        if st.tty_nr in self._ptys:
            self.held.setdefault(self._ptys[st.tty_nr], []).append(Holder(pid, st.comm))

    def _scan_maps(self) -> None:
        for pid in self._outside():
            try:
                with open(f"/proc/{pid}/maps", "rb") as f:
                    text = f.read()
                for pattern, v in self._memory.items():
                    if pattern in text:
                        self.mapped.setdefault((v.dev, v.ino), []).append(Holder(pid, procfs.comm(pid)))
            except OSError:
                continue  # it ended, or is not ours to look at


def deleted(f: OpenFile) -> bool:
    """A regular file without a name: elsewhere only a copy of it can be opened."""
    return stat.S_ISREG(f.mode) and f.target.endswith(" (deleted)") and not f.target.startswith("/memfd:")


def used_in_turns(f: OpenFile) -> bool:
    """A regular file whose offset matters to whoever shares the description: one that is not always written at its end."""
    return stat.S_ISREG(f.mode) and not f.flags & (os.O_APPEND | os.O_PATH) and not f.target.startswith("/memfd:")
