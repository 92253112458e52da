"""Whether images are what was agreed on: looked at by the destination before CRIU, which acts as root, reads a word of them.

A source that somebody has taken over can send any image; CRIU would restore a root shell from it.  What counts is what was said when the
move was admitted (:class:`Agreement`): users, groups, the pids of the tree.  Nobody gains a capability, a scheduling class or a kernel
object of this node; no file is opened by CRIU's root that is not home's; no namespace, mount or plugin is set up by an image.

Entries that are not known here are refused: a newer CRIU with new kinds of images needs a look at this file first.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mig.criu import images, layout
from mig.model import ProcessFacts

MAX_ENTRIES = 1 << 20
_KINDS = re.compile(
    r"(core|mm|fs|ids|fdinfo|pagemap|pagemap-shmem|pages|itimers|posix-timers|rlimit|signal-s|signal-p|sigacts|ghost-file|creds|seccomp"
    r"|timens)-\d+"
    r"|files|pstree|inventory|stats-dump|seccomp|tty-info|tty-data|pipes-data|fifo-data|filelocks|remap-fpath|memfd|cgroup|sk-queues"
    r"|reg-files|eventfd|eventpoll|eventpoll-tfd|signalfd|timerfd|pipes|fifo|unixsk|tty|pidfd|fs|ids"
)
"""Names of images, without ``.img``, that a tree which may move can have."""
_FILES = frozenset({"REG", "PIPE", "FIFO", "UNIXSK", "EVENTFD", "EVENTPOLL", "SIGNALFD", "TIMERFD", "TTY", "MEMFD", "PIDFD"})
"""Kinds of open files that may come: what else there is belongs to a node's kernel or network."""
_DEVICES = frozenset({"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts/ptmx"})
_DIRECTORIES = frozenset({"/dev", "/dev/pts", "/dev/shm", "/proc"})
_PROC = frozenset({
    "cmdline", "cpuinfo", "diskstats", "filesystems", "interrupts", "loadavg", "meminfo", "mounts", "partitions", "softirqs", "stat",
    "swaps", "uptime", "version", "vmstat",
})  # fmt: skip
"""Files of /proc that tell the same to everybody."""
_PROC_OF_ONES_OWN = frozenset({
    "cmdline", "comm", "io", "limits", "maps", "mountinfo", "mounts", "oom_score", "sched", "schedstat", "smaps", "stat", "statm", "status",
    "wchan",
})  # fmt: skip
_DEAD = (2, 6)
"""States of a process that had ended and waits for its parent: what CRIU restores of it ends at once."""
_CLASSES = {0: "SCHED_OTHER", 3: "SCHED_BATCH", 5: "SCHED_IDLE"}
_SET_ID = stat.S_ISUID | stat.S_ISGID
_WRITES = os.O_WRONLY | os.O_RDWR
_AT_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC
"""Flags that the kernel forgets when a file has been opened: none that is open has them."""


@dataclass(frozen=True)
class Agreement:
    """What was said when the move was admitted.

    ``root_allowed``: this node lets root's processes in, and with them any user and privilege.
    """

    uids: frozenset[int]
    gids: frozenset[int]
    pids: frozenset[int]
    root_allowed: bool = False

    @classmethod
    def of(cls, facts: ProcessFacts, *, root_allowed: bool) -> Agreement:
        """The agreement that the facts of an admitted request are."""
        return cls(
            frozenset({facts.uid, *facts.uids}), frozenset({facts.gid, *facts.gids}), frozenset({facts.pid, *facts.tree, *facts.tids}),
            root_allowed,
        )  # fmt: skip


def warm_up() -> None:
    """Load what :func:`objections` and CRIU's RPC need, before somebody stands frozen.  Raises ``ImportError``."""
    layout.rpc()
    for name in ("core", "fdinfo", "mm", "pstree", "inventory", "tty", "ghost_file", "memfd"):
        layout.image(name)


def objections(img_dir: str | os.PathLike[str], agreed: Agreement) -> list[str]:
    """Every way in which the images in ``img_dir`` are not what was agreed; empty when CRIU may read them.  Never raises for bad images."""
    try:
        return _Look(Path(img_dir), agreed).all()
    except Exception as e:  # protobuf, struct, Unicode, a missing image: whatever it is, these images are not read by CRIU
        return [f"the images cannot be read: {type(e).__name__}: {e}"]


class _Look:
    def __init__(self, img: Path, agreed: Agreement) -> None:
        self.img, self.agreed, self.found = img, agreed, list[str]()

    def all(self) -> list[str]:
        names = sorted(p.name.removesuffix(".img") for p in self.img.iterdir() if p.name.endswith(".img"))
        self.found += [f"an image {n!r}, which no guest has" for n in names if not _KINDS.fullmatch(n)]
        pids = self._tree()
        root_ids = self._inventory()
        exes: set[int] = set()
        for n in names:
            kind = n.rpartition("-")[0]
            if kind == "core":
                self._core(n, root_ids)
            elif kind == "ids":
                self._same_namespaces(n, self._one(n, "core", "task_kobj_ids_entry"), root_ids)
            elif kind == "mm":
                exes.add(self._one(n, "mm", "mm_entry").exe_file_id)
            elif kind == "ghost-file":
                self._ghost(n)
        self._files(exes, pids)
        self._terminals(names)
        self._memfds(names)
        return self.found

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def _entries(self, name: str, module: str, message: str) -> list[Any]:
        _, entries = images.read_entries(self.img / f"{name}.img", getattr(layout.image(module), message))
        if len(entries) > MAX_ENTRIES:
            raise ValueError(f"{name}: {len(entries)} entries")
        return entries

    def _one(self, name: str, module: str, message: str) -> Any:
        (entry,) = self._entries(name, module, message)
        return entry

    def _no(self, what: str) -> None:
        if what not in self.found:
            self.found.append(what)

    # -- what there is to look at ----------------------------------------------------------------------------------------------

    def _tree(self) -> set[int]:
        pids = set()
        for e in self._entries("pstree", "pstree", "pstree_entry"):
            pids |= {e.pid, *e.threads}
            if not (self.img / f"core-{e.pid}.img").exists() and e.pid:
                self._no(f"process {e.pid} without an image")
        if not pids:
            self._no("no process")
        return pids

    def _inventory(self) -> Any:
        e = self._one("inventory", "inventory", "inventory_entry")
        if e.HasField("plugins_entry") and e.plugins_entry.plugins:
            self._no("plugins of CRIU")
        return e.root_ids

    def _same_namespaces(self, name: str, ids: Any, root_ids: Any) -> None:
        for f in ids.DESCRIPTOR.fields:
            if f.name.endswith("_ns_id") and ids.HasField(f.name) and getattr(ids, f.name) != getattr(root_ids, f.name):
                self._no(f"{name}: a {f.name.removesuffix('_ns_id')} namespace of its own")

    def _core(self, name: str, root_ids: Any) -> None:
        core = self._one(name, "core", "core_entry")
        if core.HasField("ids"):
            self._same_namespaces(name, core.ids, root_ids)
        if self.agreed.root_allowed:
            return
        thread = core.thread_core
        if not core.HasField("thread_core") or not thread.HasField("creds"):
            if not core.HasField("tc") or core.tc.task_state not in _DEAD:  # a zombie has none
                self._no(f"{name}: no credentials")
            return
        c = thread.creds
        self._ids(name, "user", (c.uid, c.euid, c.suid, c.fsuid), self.agreed.uids)
        self._ids(name, "group", (c.gid, c.egid, c.sgid, c.fsgid, *c.groups), self.agreed.gids)
        # the bounding set grants nothing by itself: the cell's files are mounted nosuid
        for which in ("cap_inh", "cap_prm", "cap_eff", "cap_amb"):
            if any(getattr(c, which)):
                self._no(f"{name}: capabilities ({which})")
        if thread.sched_policy not in _CLASSES:
            self._no(f"{name}: scheduling class {thread.sched_policy}")
        if thread.sched_nice < 0:
            self._no(f"{name}: nice value {thread.sched_nice}")
        if core.HasField("tc") and core.tc.oom_score_adj < 0:
            self._no(f"{name}: it would be spared when memory runs out (oom_score_adj {core.tc.oom_score_adj})")

    def _ids(self, name: str, what: str, ids: Iterable[int], allowed: frozenset[int]) -> None:
        for i in sorted(set(ids) - allowed):
            self._no(f"{name}: {what} {i}, which was not announced")

    def _files(self, exes: set[int], pids: set[int]) -> None:
        kinds = {v: k for k, v in layout.image("fdinfo").fd_types.items()}
        entries = self._entries("files", "fdinfo", "file_entry")
        if exes - {e.reg.id for e in entries if kinds.get(e.type) == "REG"}:
            self._no("a program that is not among its files")
        for e in entries:
            kind = kinds.get(e.type, str(e.type))
            if kind not in _FILES:
                self._no(f"an open file of kind {kind}")
            elif kind == "REG":
                if e.reg.flags & _AT_OPEN:
                    self._no(f"{e.reg.name}: to be made or emptied when it is opened")
                if why := _foreign(e.reg.name, e.reg.flags, pids):
                    self._no(f"{e.reg.name}: {why}")
                if e.reg.id in exes and e.reg.mode & _SET_ID:
                    self._no(f"it executes {e.reg.name}, which is set-user-id or set-group-id")
            elif kind == "UNIXSK" and e.usk.name.strip(b"\0") and (why := _misnamed(e.usk)):
                self._no(f"a unix socket {e.usk.name!r}: {why}")
            for field_, message in e.ListFields():
                if field_.message_type is not None and "fown" in field_.message_type.fields_by_name:
                    self._owner(message.fown)

    def _owner(self, fown: Any) -> None:
        """Who gets the signals of a descriptor; the kernel checks them with these ids."""
        if fown.pid and not self.agreed.root_allowed and not {fown.uid, fown.euid} <= self.agreed.uids:
            self._no(f"signals of a descriptor in the name of user {fown.uid}")

    def _ghost(self, name: str) -> None:
        """A deleted file: CRIU makes it anew, as root, with the mode that the image says."""
        with (self.img / f"{name}.img").open("rb") as f:
            data = f.read(1 << 16)  # the entry; the file's content follows
        (n,) = struct.unpack_from("<I", data, 8)
        e = layout.image("ghost_file").ghost_file_entry()
        e.ParseFromString(data[12 : 12 + n])
        if stat.S_IFMT(e.mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO):
            self._no(f"{name}: a deleted file that is no plain file (mode {e.mode:o})")
        if e.mode & _SET_ID:
            self._no(f"{name}: a deleted file that is set-user-id or set-group-id")

    def _terminals(self, names: list[str]) -> None:
        if "tty-info" in names:
            types = layout.image("tty").TtyType
            for e in self._entries("tty-info", "tty", "tty_info_entry"):
                # EXT_TTY: one that the restore gives (as /dev/tty); CRIU opens nothing for it
                if e.type not in (types.Value("PTY"), types.Value("CTTY"), types.Value("EXT_TTY")):
                    self._no("a terminal that is not a pseudo terminal")

    def _memfds(self, names: list[str]) -> None:
        if "memfd" in names:
            for e in self._entries("memfd", "memfd", "memfd_inode_entry"):
                if e.mode & _SET_ID:
                    self._no("a memory file that is set-user-id or set-group-id")


def _misnamed(usk: Any) -> str:
    """Why CRIU, which removes what has this name and binds the socket to it, must not; "" when it may."""
    raw = usk.name.removesuffix(b"\0")
    if b"\0" in raw:
        return "a name of this node's network"
    if usk.HasField("file_perms") and usk.file_perms.mode & _SET_ID:
        return "set-user-id or set-group-id"
    name = os.path.join(usk.name_dir or "/", os.fsdecode(raw))
    top = name.split("/")[1:2]
    return "a name of this node" if top in (["proc"], ["dev"]) and not name.startswith("/dev/shm/") else _foreign(name, 0, set())


def _foreign(name: str, flags: int, pids: set[int]) -> str:
    """Why a path leads to something of this node instead of to home's files; "" when it does not.

    On a host only /dev, /proc and /.cell are this node's own (mig.cell.mounts).  A link among home's files may lead into /proc without
    being seen here: that is why the cell's /proc does not show what is dangerous to open as root.
    """
    parts = name.split("/")
    if not name.startswith("/") or ".." in parts or "\0" in name:
        return "not an absolute path"
    top = parts[1]
    if top == ".cell" or name.startswith("/run/criu.kdat"):
        return "a file of the cell itself"
    if name in _DIRECTORIES:
        return ""
    if top == "dev":
        inside = len(parts) >= 4 and (parts[2] == "shm" or (parts[2] == "pts" and parts[3].isdigit()))
        return "" if name in _DEVICES or inside else "a device of this node"
    if top == "proc":
        if flags & _WRITES:
            return "a file of this node's kernel, to be written"
        own = parts[2].isdigit() and int(parts[2]) in pids and (len(parts) == 3 or (len(parts) == 4 and parts[3] in _PROC_OF_ONES_OWN))
        return "" if own or (len(parts) == 3 and parts[2] in _PROC) else "a file of this node's kernel"
    return ""
