"""The host's side of home's files: connect to the server, mount /dev/fuse, start the pumps.

The mount is ``nosuid,nodev``: what is a device or set-id at home is a plain file here.  ``default_permissions``: this kernel checks mode
bits with the process's own credentials, and home checks again.  Once a connection is lost every access fails (ENOTCONN, ECONNABORTED or
EIO) instead of waiting for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Sequence

from mig import wire
from mig.errors import MigError
from mig.homefs import protocol as p
from mig.homefs import pump
from mig.kernel import libc
from mig.trust import links

FUSE_DEV_IOC_CLONE = 0x8004E500
CHANNELS = 2
"""More do not help: the server's threads share one interpreter lock."""
START_S = 10.0


class MountError(MigError):
    """Home's files could not be mounted; nothing is left of the attempt."""


Connections = tuple[list[socket.socket], socket.socket]
Dial = Callable[[str, int], socket.socket]


def _bare(addr: str, port: int) -> socket.socket:
    """Without encryption: for a server on this machine."""
    return socket.create_connection((addr, port), timeout=START_S)


def connect(
    addr: str, port: int, token: bytes, *, channels: int = CHANNELS, mount_id: bytes | None = None, dial: Dial = _bare
) -> Connections:
    """Connections of one new mount to the server at ``addr``: those for requests, and the one for notifications; blocking.
    ``dial`` makes one connection: :func:`mig.trust.links.dial` where the server is another node's.

    Raises :class:`MountError` when nobody answers, or the server does not accept ``token``.
    """
    mount_id = os.urandom(p.MOUNT_ID_SIZE) if mount_id is None else mount_id
    made: list[socket.socket] = []
    try:
        for kind in [p.REQUESTS] * channels + [p.NOTIFICATIONS]:
            s = dial(addr, port)
            made.append(s)
            s.settimeout(START_S)
            wire.tune(s)
            s.sendall(p.GREETING.pack(token, kind, mount_id))
            if wire.recv_exact(s, len(p.ACCEPTED)) != p.ACCEPTED:
                raise MountError(f"what listens on {addr} port {port} is no server of home's files")
            s.settimeout(None)
    except BaseException as e:
        for s in made:
            s.close()
        if isinstance(e, (EOFError, ConnectionError)) and made:
            raise MountError(f"the server of home's files on {addr} port {port} did not accept us") from e
        if isinstance(e, OSError):
            raise MountError(f"the server of home's files on {addr} port {port} cannot be reached: {e.strerror or e}") from e
        raise
    return made[:-1], made[-1]


class FuseMount:
    """Home's files at ``mountpoint`` in our mount namespace, served over connections made by :func:`connect`.

    Takes the sockets over (they are closed here).  Blocking, for a few milliseconds.  ``pids`` are the pumps, children of ours: they end
    with us.  ``down`` is an eventfd that becomes readable when the mount can no longer be served: add a reader, do not read it.
    Raises :class:`MountError`.
    """

    def __init__(self, mountpoint: str | os.PathLike[str], connections: Sequence[socket.socket], notify: socket.socket) -> None:
        self.mountpoint = os.fspath(mountpoint)
        self.pids: list[int] = []
        self._carried: list[int] = []
        self.down = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        devices: list[int] = []
        mounted = False
        try:
            devices.append(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
            options = f"fd={devices[0]},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
            libc.mount("homefs", self.mountpoint, "fuse.homefs", libc.MS_NOSUID | libc.MS_NODEV, options)
            mounted = True
            # alone: a clone cannot read before the connection is initialised
            _initialise(devices[0], connections[0])
            for _ in connections[1:]:
                clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
                devices.append(clone)
                fcntl.ioctl(clone, FUSE_DEV_IOC_CLONE, devices[0].to_bytes(4, "little"))
            self.pids.append(pump.spawn(devices[0], notify, self.down, notifications=True))
            for device, connection in zip(devices, connections, strict=True):
                if connection.family == socket.AF_UNIX:  # our end of an encrypted connection: no process more than its relay is needed
                    self._carried.append(links.carry_fuse(connection, device, self.down))
                else:
                    self.pids.append(pump.spawn(device, connection, self.down))
        except (OSError, EOFError) as e:
            if mounted:
                libc.umount2(self.mountpoint, libc.MNT_DETACH)
            self.abort()
            os.close(self.down)
            raise MountError(f"home's files cannot be mounted at {self.mountpoint}: {e}") from e
        finally:
            # the pumps' copies alone keep the mount alive: when they are gone, the kernel fails what waits
            for device in devices:
                os.close(device)
            for s in (*connections, notify):
                s.close()

    def abort(self) -> None:
        """End the pumps, so that every access to the mount fails from now on; the mount itself stays.  Idempotent."""
        for number in self._carried:
            links.end(number)
        self._carried = []
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # reaped by somebody else
        for pid in self.pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue
        self.pids = []

    def close(self) -> None:
        """Unmount (from our namespace: what is mounted on top, or in use, goes with its users) and end the pumps.  Idempotent."""
        if self.down < 0:
            return
        try:
            libc.umount2(self.mountpoint, libc.MNT_DETACH)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted any more
                raise
        self.abort()
        os.close(self.down)
        self.down = -1


def _initialise(device: int, connection: socket.socket) -> None:
    """Carry INIT and its answer."""
    buffer = bytearray(p.MAX_MESSAGE)
    n = os.readv(device, [buffer])
    connection.settimeout(START_S)
    connection.sendall(memoryview(buffer)[:n])
    header = wire.recv_exact(connection, p.OUT_HEADER.size)
    length, error, _ = p.OUT_HEADER.unpack(header)
    if error or not p.OUT_HEADER.size < length <= 4096:
        raise OSError(-error or errno.EPROTO, "home does not want to serve this kernel")
    os.write(device, header + wire.recv_exact(connection, length - p.OUT_HEADER.size))
    connection.settimeout(None)
