"""Directory listings: READDIR, and READDIRPLUS with an entry per name."""

from __future__ import annotations

import os
import stat

from mig.homefs import protocol as p
from mig.homefs.handles import OpenDirectory
from mig.homefs.nodes import NodeTable

DT_UNKNOWN, DT_DIR, DT_REG, DT_LNK = 0, stat.S_IFDIR >> 12, stat.S_IFREG >> 12, stat.S_IFLNK >> 12


def list_names(fd: int, hidden: set[bytes]) -> list[tuple[bytes, int, int]]:
    """(name, DT_ type, inode) of all names in the directory ``fd``, "." and ".." first, without the ``hidden`` ones."""
    here = os.stat(fd).st_ino
    try:
        above = os.stat("..", dir_fd=fd).st_ino
    except PermissionError:
        above = here  # the guest may read the directory, but not go through it
    out = [(b".", DT_DIR, here), (b"..", DT_DIR, above)]
    os.lseek(fd, 0, os.SEEK_SET)
    with os.scandir(fd) as entries:
        for e in entries:
            name = os.fsencode(e.name)
            if name not in hidden:
                # none of these asks the file system as long as it filled in d_type
                t = DT_REG if e.is_file(follow_symlinks=False) else DT_DIR if e.is_dir(follow_symlinks=False) else 0
                out.append((name, t or (DT_LNK if e.is_symlink() else DT_UNKNOWN), e.inode()))
    return out


def pack_names(directory: OpenDirectory, offset: int, size: int, nodes: NodeTable | None) -> bytes:
    """As many names from the ``offset``-th on as fit into ``size`` bytes; with ``nodes`` each is preceded by its looked-up entry."""
    out = bytearray()
    plus = p.ENTRY_SIZE if nodes is not None else 0
    for index, (name, kind, inode) in enumerate((directory.names or [])[offset:], offset + 1):
        padding = -len(name) % 8
        if len(out) + plus + p.DIRENT.size + len(name) + padding > size:
            break
        if nodes is not None:
            out += bytes(plus) if name in (b".", b"..") else _entry(nodes, directory.node, name)
        out += p.DIRENT.pack(inode, index, len(name), kind) + name + bytes(padding)
    return bytes(out)


def _entry(nodes: NodeTable, parent: int, name: bytes) -> bytes:
    try:
        return nodes.lookup(parent, name)
    except OSError:
        return bytes(p.ENTRY_SIZE)  # node 0: the name without an entry; whoever looks closer gets the true error
