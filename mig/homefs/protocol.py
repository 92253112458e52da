"""The FUSE protocol (linux/fuse.h, 7.x) as constants and structs, and the greeting that opens each of our connections.

A FUSE message carries its own length in its first four bytes, so that messages travel over TCP as they are, one after the other.
Constants keep the kernel's names; byte order is the machine's (both ends of a mount have the same architecture).
"""

from __future__ import annotations

from struct import Struct

MAX_WRITE = 1 << 20
"""Bytes of data in one READ or WRITE; 256 pages is what the kernel allows by default."""
MAX_MESSAGE = MAX_WRITE + 65536
"""No message is longer: data, headers and names."""

IN_HEADER = Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER = Struct("=IiQ")  # len, error (or notification code), unique (0: notification)
ATTR = Struct("=6Q10I")  # ino, size, blocks, a/m/ctime, a/m/ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
ATTR_OUT = Struct("=QII")  # attr_valid, attr_valid_nsec, dummy; then ATTR
ENTRY_OUT = Struct("=QQQQII")  # nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; then ATTR
ENTRY_SIZE = ENTRY_OUT.size + ATTR.size
DIRENT = Struct("=QQII")  # ino, off, namelen, type; then the name, padded to 8
INIT_IN = Struct("=IIII")  # major, minor, max_readahead, flags; flags2 follows since 7.36
INIT_OUT = Struct("=IIIIHHIIHHIIHH20x")  # …, max_background, congestion, max_write, time_gran, max_pages, -, flags2, -, -, -
OPEN_IN = Struct("=II")  # flags, open_flags
OPEN_OUT = Struct("=QIi")  # fh, open_flags, backing_id
CREATE_IN = Struct("=IIII")  # flags, mode, umask, open_flags
MKNOD_IN = Struct("=IIII")  # mode, rdev, umask, padding
MKDIR_IN = Struct("=II")  # mode, umask
READ_IN = Struct("=QQIIQII")  # fh, offset, size, read/write_flags, lock_owner, flags, padding
WRITE_OUT = Struct("=II")  # size, padding
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")  # valid, -, fh, size, lock_owner, atime, mtime, ctime, their nsec, mode, -, uid, gid, -
RELEASE_IN = Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN = Struct("=QIIQ")  # fh, -, -, lock_owner
FSYNC_IN = Struct("=QI")  # fh, fsync_flags
LK_IN = Struct("=QQQQIIII")  # fh, owner, start, end, type, pid, lk_flags, padding
LK_OUT = Struct("=QQII")  # start, end, type, pid
STATFS_OUT = Struct("=5Q4I24x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding
XATTR_IN = Struct("=II")  # size, flags (SETXATTR) or padding (GETXATTR)
XATTR_OUT = Struct("=II")  # size, padding
LSEEK_IN = Struct("=QQI")  # fh, offset, whence
LSEEK_OUT = Struct("=Q")
FALLOCATE_IN = Struct("=QQQI")  # fh, offset, length, mode
FORGET_ONE = Struct("=QQ")  # nodeid, nlookup
INVAL_INODE_OUT = Struct("=Qqq")  # nodeid, off, len; off < 0: attributes only
INVAL_ENTRY_OUT = Struct("=QII")  # parent, namelen, flags; then the name and a zero byte
U32 = Struct("=I")
U64 = Struct("=Q")

# opcodes
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = range(1, 7)
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = range(8, 19)
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = range(20, 31)
GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BMAP, DESTROY, IOCTL, POLL, NOTIFY_REPLY, BATCH_FORGET = range(31, 43)
FALLOCATE, READDIRPLUS, RENAME2, LSEEK = range(43, 47)

# INIT flags that we use; those from 32 on travel in flags2
ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
FLOCK_LOCKS = 1 << 10
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28
INIT_EXT = 1 << 30
HAS_EXPIRE_ONLY = 1 << 35
WANTED = (
    ASYNC_READ | POSIX_LOCKS | ATOMIC_O_TRUNC | BIG_WRITES | DONT_MASK | FLOCK_LOCKS | AUTO_INVAL_DATA | DO_READDIRPLUS
    | READDIRPLUS_AUTO | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2
)  # fmt: skip
"""No WRITEBACK_CACHE: it breaks O_APPEND against home's own writers, and mtime and size as home sees them."""

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME, FATTR_FH, FATTR_ATIME_NOW, FATTR_MTIME_NOW = (
    1 << n for n in range(9)
)
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FMODE_EXEC = 0x20  # in the flags of OPEN: the kernel opens a program to execute it
FSYNC_FDATASYNC = 1 << 0
LK_FLOCK = 1 << 0
OFFSET_MAX = (1 << 63) - 1

NOTIFY_BARRIER = 0
"""Ours, never given to the kernel: the receiver of the notifications answers it with :data:`BARRIER_ACK`."""
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
EXPIRE_ONLY = 1 << 0
BARRIER_ACK = b"\x01"

# our greeting
GREETING = Struct("=32s4s16s")  # token, kind, mount id
REQUESTS = b"FUSE"
NOTIFICATIONS = b"NOTI"
ACCEPTED = b"mgfs"
"""The server's only answer; a caller that does not know the token gets none, only the end of the connection."""
TOKEN_SIZE = 32
MOUNT_ID_SIZE = 16


def init_out(minor: int, offered: int) -> bytes:
    """The reply to INIT: everything wanted that the kernel offers."""
    flags = offered & WANTED | (offered & INIT_EXT)
    return INIT_OUT.pack(
        7, min(minor, 38), MAX_WRITE, flags & 0xFFFFFFFF, 64, 48, MAX_WRITE, 1, MAX_WRITE // 4096, 0, flags >> 32, 0, 0, 0
    )  # fmt: skip


def offered_flags(body: memoryview) -> tuple[int, int]:
    """(minor, 64 bits of flags) of an INIT request's body; flags2 only counts with INIT_EXT."""
    _, minor, _, flags = INIT_IN.unpack_from(body)
    if flags & INIT_EXT and len(body) >= INIT_IN.size + 4:
        flags |= U32.unpack_from(body, INIT_IN.size)[0] << 32
    return minor, flags


def name_at(body: memoryview, offset: int = 0) -> bytes:
    """The zero-terminated bytes at ``offset``; raises ``ValueError`` when there is no end."""
    b = bytes(body[offset:])
    return b[: b.index(0)]
