"""What home does for each FUSE request of one mount.

A method takes a :class:`Request` and returns the reply's body; an ``OSError`` becomes the guest's errno.  READ returns the number of bytes
that it left in the request's buffer.  Requests that open, create or change something run as the guest (see :data:`AS_GUEST`), so that
home's kernel decides and owns; the rest works on what is open already.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from mig.homefs import directories, syscalls
from mig.homefs import protocol as p
from mig.homefs.guest import READS, WRITES, Key
from mig.homefs.handles import HandleTable, OpenDirectory, OpenFile
from mig.homefs.locks import LockTable
from mig.homefs.nodes import Node, NodeTable, Synthetic

_NOT_AT_HOME = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_NOFOLLOW | os.O_DIRECT | os.O_NONBLOCK | p.FMODE_EXEC
"""Flags of open(2) that the host's kernel has dealt with, or that would change how the server itself reads and writes."""


@dataclass(slots=True)
class Request:
    """One request, and the buffer of the thread that serves it; used again for the next one."""

    node: int = 0
    unique: int = 0
    pid: int = 0
    body: memoryview = field(default_factory=lambda: memoryview(b""))  # what follows the header
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(p.OUT_HEADER.size + p.MAX_WRITE)))

    @property
    def data(self) -> memoryview:
        """Room for MAX_WRITE bytes, behind room for the reply's header."""
        return self.buffer[p.OUT_HEADER.size :]


class Operations:
    """The requests of one mount, on its tables."""

    def __init__(self, nodes: NodeTable, handles: HandleTable, locks: LockTable, synthetic: Synthetic) -> None:
        self.nodes, self.handles, self.locks, self._synthetic = nodes, handles, locks, synthetic
        self.expires_only = False  # the host's kernel can expire a name without dropping what is mounted on it (Linux 6.2)
        self.table: dict[int, Callable[[Request], bytes | int]] = {
            p.LOOKUP: self.lookup, p.GETATTR: self.getattr, p.SETATTR: self.setattr, p.READLINK: self.readlink, p.SYMLINK: self.symlink,
            p.MKNOD: self.mknod, p.MKDIR: self.mkdir, p.UNLINK: self.unlink, p.RMDIR: self.rmdir, p.RENAME: self.rename,
            p.RENAME2: self.rename2, p.LINK: self.link, p.OPEN: self.open, p.CREATE: self.create, p.READ: self.read, p.WRITE: self.write,
            p.STATFS: self.statfs, p.RELEASE: self.release, p.FSYNC: self.fsync, p.FLUSH: self.flush, p.INIT: self.init,
            p.OPENDIR: self.opendir, p.READDIR: self.readdir, p.READDIRPLUS: self.readdirplus, p.RELEASEDIR: self.release,
            p.FSYNCDIR: self.fsyncdir, p.GETLK: self.getlk, p.SETLK: self.setlk, p.SETXATTR: self.setxattr, p.GETXATTR: self.getxattr,
            p.LISTXATTR: self.listxattr, p.REMOVEXATTR: self.removexattr, p.LSEEK: self.lseek, p.FALLOCATE: self.fallocate,
            p.IOCTL: self.ioctl, p.DESTROY: self.destroy,
        }  # fmt: skip

    # -- names -----------------------------------------------------------------------------------------------------------------------

    def init(self, r: Request) -> bytes:
        minor, offered = p.offered_flags(r.body)
        self.expires_only = bool(offered & p.HAS_EXPIRE_ONLY)
        return p.init_out(minor, offered)

    def destroy(self, r: Request) -> bytes:
        return b""

    def lookup(self, r: Request) -> bytes:
        return self.nodes.lookup(r.node, _name(r.body))

    def readlink(self, r: Request) -> bytes:
        return os.readlink(b"", dir_fd=self.nodes.get(r.node).fd)

    def symlink(self, r: Request) -> bytes:
        name = _name(r.body)
        os.symlink(p.name_at(r.body, len(name) + 1), name, dir_fd=self.nodes.own(r.node).fd)
        return self.nodes.lookup(r.node, name)

    def mknod(self, r: Request) -> bytes:
        mode, rdev, umask, _ = p.MKNOD_IN.unpack_from(r.body)
        name = _name(r.body, p.MKNOD_IN.size)
        # the thread has an umask of its own: home applies it, or the directory's default ACL instead
        os.umask(umask)
        os.mknod(name, mode, os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00), dir_fd=self.nodes.own(r.node).fd)
        return self.nodes.lookup(r.node, name)

    def mkdir(self, r: Request) -> bytes:
        mode, umask = p.MKDIR_IN.unpack_from(r.body)
        name = _name(r.body, p.MKDIR_IN.size)
        os.umask(umask)
        os.mkdir(name, mode, dir_fd=self.nodes.own(r.node).fd)
        return self.nodes.lookup(r.node, name)

    def unlink(self, r: Request) -> bytes:
        os.unlink(_name(r.body), dir_fd=self.nodes.own(r.node).fd)
        return b""

    def rmdir(self, r: Request) -> bytes:
        os.rmdir(_name(r.body), dir_fd=self.nodes.own(r.node).fd)
        return b""

    def rename(self, r: Request) -> bytes:
        return self._rename(r, p.U64.size, 0)

    def rename2(self, r: Request) -> bytes:
        return self._rename(r, p.U64.size + 8, p.U32.unpack_from(r.body, p.U64.size)[0])

    def _rename(self, r: Request, offset: int, flags: int) -> bytes:
        (new_parent,) = p.U64.unpack_from(r.body)
        old = _name(r.body, offset)
        new = _name(r.body, offset + len(old) + 1)
        syscalls.renameat2(self.nodes.own(r.node).fd, old, self.nodes.own(new_parent).fd, new, flags)
        self.nodes.renamed(new_parent, new)
        return b""

    def link(self, r: Request) -> bytes:
        (old,) = p.U64.unpack_from(r.body)
        name = _name(r.body, p.U64.size)
        os.link(self.nodes.path(old), name, dst_dir_fd=self.nodes.own(r.node).fd, follow_symlinks=True)
        return self.nodes.lookup(r.node, name)

    # -- attributes --------------------------------------------------------------------------------------------------------------------

    def getattr(self, r: Request) -> bytes:
        return self.nodes.attributes(r.node)

    def setattr(self, r: Request) -> bytes:
        valid, _, fh, size, _, at, mt, _, an, mn, _, mode, _, uid, gid, _ = p.SETATTR_IN.unpack_from(r.body)
        path = self.nodes.path(r.node)
        if valid & (p.FATTR_UID | p.FATTR_GID):
            os.chown(path, uid if valid & p.FATTR_UID else -1, gid if valid & p.FATTR_GID else -1)
        if valid & p.FATTR_MODE:  # after chown, which clears set-id bits
            os.chmod(path, mode & 0o7777)
        if valid & p.FATTR_SIZE:
            if valid & p.FATTR_FH:
                os.ftruncate(self.handles.file(fh).fd, size)
            else:
                os.truncate(path, size)
            self.nodes.get(r.node).version = None
        if valid & (p.FATTR_ATIME | p.FATTR_MTIME):
            # "now" stays "now": a user who may write may set that, but no other time
            a = (at, syscalls.UTIME_NOW if valid & p.FATTR_ATIME_NOW else an) if valid & p.FATTR_ATIME else (0, syscalls.UTIME_OMIT)
            m = (mt, syscalls.UTIME_NOW if valid & p.FATTR_MTIME_NOW else mn) if valid & p.FATTR_MTIME else (0, syscalls.UTIME_OMIT)
            syscalls.utimensat(path.encode(), a, m)
        return self.nodes.attributes(r.node)

    def getxattr(self, r: Request) -> bytes:
        size, _ = p.XATTR_IN.unpack_from(r.body)
        name = p.name_at(r.body, p.XATTR_IN.size)
        if name == b"security.capability":  # the mount is nosuid: never used, but asked for at each exec
            raise OSError(errno.ENODATA, "no file capabilities here")
        return _sized(os.getxattr(self.nodes.path(r.node), name), size)

    def listxattr(self, r: Request) -> bytes:
        size, _ = p.XATTR_IN.unpack_from(r.body)
        return _sized(b"".join(os.fsencode(n) + b"\0" for n in os.listxattr(self.nodes.path(r.node))), size)

    def setxattr(self, r: Request) -> bytes:
        size, flags = p.XATTR_IN.unpack_from(r.body)
        name = p.name_at(r.body, p.XATTR_IN.size)
        start = p.XATTR_IN.size + len(name) + 1
        os.setxattr(self.nodes.path(r.node), name, r.body[start : start + size], flags)
        return b""

    def removexattr(self, r: Request) -> bytes:
        os.removexattr(self.nodes.path(r.node), p.name_at(r.body))
        return b""

    def statfs(self, r: Request) -> bytes:
        v = os.fstatvfs(self.nodes.get(r.node).fd)
        return p.STATFS_OUT.pack(v.f_blocks, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree, v.f_bsize, v.f_namemax, v.f_frsize, 0)

    # -- open files ------------------------------------------------------------------------------------------------------------------

    def open(self, r: Request) -> bytes:
        flags, _ = p.OPEN_IN.unpack_from(r.body)
        node = self.nodes.own(r.node)
        path, mode = f"/proc/self/fd/{node.fd}", flags & ~_NOT_AT_HOME | os.O_CLOEXEC
        fd = os.open(path, mode)
        return self._opened(r, node, fd, flags, _keeps_cache(node, fd))

    def may_execute(self, r: Request) -> bool:
        """Whether OPEN is of a program that the guest, as which we act, may execute though not read."""
        flags, _ = p.OPEN_IN.unpack_from(r.body)
        node = self.nodes.own(r.node)
        return bool(flags & p.FMODE_EXEC) and os.access(f"/proc/self/fd/{node.fd}", os.X_OK, effective_ids=True)

    def open_to_execute(self, r: Request) -> bytes:
        """OPEN of such a program: only root can, as the guest's kernel would."""
        flags, _ = p.OPEN_IN.unpack_from(r.body)
        return self._opened(r, self.nodes.get(r.node), os.open(self.nodes.path(r.node), os.O_RDONLY | os.O_CLOEXEC), flags, 0)

    def open_held(self, r: Request, access: Callable[[Key], int | None]) -> bytes | None:
        """OPEN, with root's privileges, of a file that the guest holds open in this way already (``access``); None for any other."""
        flags, _ = p.OPEN_IN.unpack_from(r.body)
        node = self.nodes.get(r.node)
        wanted = (READS, WRITES, READS | WRITES)[flags & os.O_ACCMODE]
        if flags & os.O_TRUNC or wanted & ~(access(node.key) or 0):
            return None
        return self._opened(r, node, os.open(f"/proc/self/fd/{node.fd}", flags & ~_NOT_AT_HOME | os.O_CLOEXEC), flags, 0)

    def open_held_directory(self, r: Request, access: Callable[[Key], int | None]) -> bytes | None:
        """OPENDIR, with root's privileges, of a directory that the guest holds: readable only if the guest has it open."""
        node = self.nodes.get(r.node)
        held = access(node.key)
        if held is None:
            return None
        return self._opened_directory(r, node, os.O_RDONLY if held & READS else os.O_PATH)

    def create(self, r: Request) -> bytes:
        flags, mode, umask, _ = p.CREATE_IN.unpack_from(r.body)
        name = _name(r.body, p.CREATE_IN.size)
        directory = self.nodes.own(r.node).fd
        os.umask(umask)
        # NONBLOCK: something that waits (a FIFO) may have taken the name at home just now
        wanted = flags & ~_NOT_AT_HOME | flags & os.O_EXCL | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, wanted, mode & 0o7777, dir_fd=directory)
        try:
            entry = self.nodes.adopt(os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC), r.node, name)
        except OSError:
            os.close(fd)
            raise
        r.node = p.U64.unpack_from(entry)[0]
        return entry + self._opened(r, self.nodes.get(r.node), fd, flags, 0)

    def _opened(self, r: Request, node: Node, fd: int, flags: int, reply: int) -> bytes:
        node.handles += 1
        if flags & os.O_ACCMODE == os.O_WRONLY and flags & os.O_APPEND:
            # past the host's page cache, which would file the data where *it* thinks the end is; home's other writers know better
            reply = p.FOPEN_DIRECT_IO
        return p.OPEN_OUT.pack(self.handles.add(OpenFile(fd, r.node, flags, r.pid, node.key)), reply, 0)

    def read(self, r: Request) -> int:
        fh, offset, size, *_ = p.READ_IN.unpack_from(r.body)
        return os.preadv(self.handles.file(fh).fd, [r.data[:size]], offset)

    def write(self, r: Request) -> bytes:
        fh, offset, size, *_ = p.READ_IN.unpack_from(r.body)
        start = p.READ_IN.size
        n = self.handles.write(fh, r.body[start : start + size], offset)
        node = self.nodes.by_id.get(r.node)
        if node is not None:
            node.version = None
        return p.WRITE_OUT.pack(n, 0)

    def lseek(self, r: Request) -> bytes:
        fh, offset, whence = p.LSEEK_IN.unpack_from(r.body)
        return p.LSEEK_OUT.pack(os.lseek(self.handles.file(fh).fd, offset, whence))

    def fallocate(self, r: Request) -> bytes:
        fh, offset, length, mode = p.FALLOCATE_IN.unpack_from(r.body)
        syscalls.fallocate(self.handles.file(fh).fd, mode, offset, length)
        return b""

    def fsync(self, r: Request) -> bytes:
        fh, flags = p.FSYNC_IN.unpack_from(r.body)
        fd = self.handles.file(fh).fd
        if flags & p.FSYNC_FDATASYNC:
            os.fdatasync(fd)
        else:
            os.fsync(fd)
        return b""

    def ioctl(self, r: Request) -> bytes:
        raise OSError(errno.ENOTTY, "ioctls stay on the host")

    def flush(self, r: Request) -> bytes:
        _, _, _, owner = p.FLUSH_IN.unpack_from(r.body)
        self.locks.drop_owner(r.node, owner)
        return b""

    def release(self, r: Request) -> bytes:
        released = self.handles.release(p.RELEASE_IN.unpack_from(r.body)[0])
        node = self.nodes.by_id.get(r.node)
        if released is not None and node is not None:
            node.handles -= 1
        return b""

    # -- directories -----------------------------------------------------------------------------------------------------------------

    def opendir(self, r: Request) -> bytes:
        return self._opened_directory(r, self.nodes.own(r.node), os.O_RDONLY)

    def _opened_directory(self, r: Request, node: Node, mode: int) -> bytes:
        fd = os.open(f"/proc/self/fd/{node.fd}", mode | os.O_DIRECTORY | os.O_CLOEXEC)
        node.handles += 1
        return p.OPEN_OUT.pack(self.handles.add(OpenDirectory(fd, r.node, node.key)), 0, 0)

    def readdir(self, r: Request) -> bytes:
        return self._readdir(r, None)

    def readdirplus(self, r: Request) -> bytes:
        return self._readdir(r, self.nodes)

    def _readdir(self, r: Request, plus: NodeTable | None) -> bytes:
        fh, offset, size, *_ = p.READ_IN.unpack_from(r.body)
        d = self.handles.directory(fh)
        if offset == 0 or d.names is None:
            d.names = directories.list_names(d.fd, self._synthetic.names(self.nodes.get(r.node).key))
        return directories.pack_names(d, offset, size, plus)

    def fsyncdir(self, r: Request) -> bytes:
        fh, _ = p.FSYNC_IN.unpack_from(r.body)
        os.fsync(self.handles.directory(fh).fd)
        return b""

    # -- locks (SETLKW waits, and is answered by the channel) --------------------------------------------------------------------------

    def getlk(self, r: Request) -> bytes:
        return self.locks.test(r.node, r.body)

    def setlk(self, r: Request) -> bytes:
        self.locks.set(r.node, r.body)
        return b""


AS_GUEST = frozenset((
    p.LOOKUP, p.SETATTR, p.SYMLINK, p.MKNOD, p.MKDIR, p.UNLINK, p.RMDIR, p.RENAME, p.RENAME2, p.LINK, p.OPEN, p.CREATE, p.WRITE,
    p.OPENDIR, p.READDIRPLUS, p.SETXATTR, p.GETXATTR, p.LISTXATTR, p.REMOVEXATTR, p.FALLOCATE,
))  # fmt: skip
"""Opcodes served with the guest's credentials.  WRITE is among them so that home's kernel clears set-id bits and counts quotas."""
AS_ROOT = frozenset((p.GETLK, p.SETLK, p.SETLKW, p.READDIR))
"""Opcodes that open something of the server's own, which the guest's permissions must not hinder; the others do not care."""


def _name(body: memoryview, offset: int = 0) -> bytes:
    """A name within a directory; raises ``OSError`` (``EINVAL``) for one that would lead elsewhere."""
    name = p.name_at(body, offset)
    if b"/" in name or name in (b".", b"..", b""):
        raise OSError(errno.EINVAL, "not a name in a directory")
    return name


def _sized(value: bytes, size: int) -> bytes:
    """The reply to a question for an extended attribute: with size 0 only how long the value is."""
    if size == 0:
        return p.XATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "the value is longer than the buffer")
    return value


def _keeps_cache(node: Node, fd: int) -> int:
    """FOPEN_KEEP_CACHE when the file is what it was at the last open, so that the host's pages of it are right."""
    st = os.fstat(fd)
    version = (st.st_mtime_ns, st.st_ctime_ns, st.st_size)
    known, node.version = node.version, version
    return p.FOPEN_KEEP_CACHE if known == version else 0
