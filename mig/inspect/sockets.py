"""What a socket is: its family and names from a duplicate of the descriptor, a unix socket's peer from the kernel's sock_diag."""

from __future__ import annotations

import os
import socket
import struct

from mig.inspect.scene import Socket
from mig.kernel import libc

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
UDIAG_SHOW_PEER, UDIAG_SHOW_ICONS, UDIAG_SHOW_RQLEN = 4, 8, 16
UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_RQLEN = 2, 3, 4
ANY = 0xFFFFFFFF
TCP_LISTEN = 10
SO_PROTOCOL_FAMILY = 39  # SO_DOMAIN


class UnixDiag:
    """Questions about unix sockets of one network namespace, that of process ``pid``; close it after use."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._sock: socket.socket | None = None

    def _connect(self) -> socket.socket:
        def netlink() -> socket.socket:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)

        if os.path.samestat(os.stat("/proc/self/ns/net"), os.stat(f"/proc/{self._pid}/ns/net")):
            return netlink()
        # a netlink socket keeps the namespace of its creation: go there, make it, come back
        home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY)
        try:
            libc.setns(there, libc.CLONE_NEWNET)
            try:
                return netlink()
            finally:
                libc.setns(home, libc.CLONE_NEWNET)
        finally:
            os.close(home)
            os.close(there)

    def close(self) -> None:
        """Close the netlink socket, if one was needed."""
        if self._sock is not None:
            self._sock.close()

    def ask(self, ino: int) -> tuple[int, int]:
        """(state, inode of the peer or 0) of the unix socket with this inode; (0, 0) when the kernel knows none.

        A connection that has not been accepted yet, and one that the other end has closed, have no peer.
        """
        _, state, attributes = self._one(ino, UDIAG_SHOW_PEER)
        return state, int.from_bytes(attributes.get(UNIX_DIAG_PEER, b""), "little")

    def unread(self, ino: int) -> int | None:
        """About how many bytes this unix socket has sent that its peer has not read; None when the kernel knows no such socket."""
        found, _, attributes = self._one(ino, UDIAG_SHOW_RQLEN)
        return struct.unpack("=II", attributes[UNIX_DIAG_RQLEN])[1] if found else None

    def unaccepted(self) -> dict[int, list[int]]:
        """By the inode of a listening unix socket: those of the sockets whose connection to it waits to be accepted, 0 for closed ones."""
        self._send(NLM_F_DUMP, 1 << TCP_LISTEN, 0, UDIAG_SHOW_ICONS, ANY)
        out: dict[int, list[int]] = {}
        assert self._sock is not None
        while True:
            reply, at = self._sock.recv(1 << 16), 0
            while at + 16 <= len(reply):
                length, kind = struct.unpack_from("=IH", reply, at)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return out
                ino, _, attributes = _socket(reply[at : at + length])
                if icons := attributes.get(UNIX_DIAG_ICONS):
                    out[ino] = list(struct.unpack(f"={len(icons) // 4}I", icons))
                at += (length + 3) & ~3

    def _one(self, ino: int, show: int) -> tuple[int, int, dict[int, bytes]]:
        self._send(0, ANY, ino, show, ANY)
        assert self._sock is not None
        return _socket(self._sock.recv(8192))

    def _send(self, flags: int, states: int, ino: int, show: int, cookie: int) -> None:
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, states, ino, show, cookie, cookie)
        head = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | flags, 1, 0)
        self._sock = self._sock or self._connect()
        self._sock.sendto(head + request, (0, 0))


def _socket(message: bytes) -> tuple[int, int, dict[int, bytes]]:
    """(inode, state, attributes) that a message of sock_diag tells; (0, 0, {}) of an error."""
    if int.from_bytes(message[4:6], "little") == NLMSG_ERROR:
        return 0, 0, {}
    attributes, at = {}, 32  # nlmsghdr 16 + unix_diag_msg 16
    while at + 4 <= len(message):
        length, attribute = struct.unpack_from("=HH", message, at)
        attributes[attribute] = message[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return int.from_bytes(message[20:24], "little"), message[18], attributes


def _address(name: object) -> str:
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"{host}:{port}" if name[:2] not in (("0.0.0.0", 0), ("::", 0)) else ""
    if isinstance(name, bytes):
        return "@" + os.fsdecode(name[1:]) if name[:1] == b"\0" else os.fsdecode(name)
    return str(name) if name else ""


def look(pid: int, fd: int, target: str, diag: UnixDiag) -> Socket:
    """The socket behind descriptor ``fd`` of ``pid``; raises ``OSError`` when it is gone or the process may not be looked into."""
    ino = int(target[len("socket:[") : -1])
    duplicate = libc.pidfd_getfd(pid, fd)
    try:
        s = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise
    with s:
        family, kind = s.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL_FAMILY), s.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        names = []
        for ask in (s.getsockname, s.getpeername):
            try:
                names.append(_address(ask()))
            except OSError:
                names.append("")  # not connected, or a family without names
        mine, theirs = names
        if family == socket.AF_UNIX:
            state, peer = diag.ask(ino)
            return Socket(family, kind, ino, mine or theirs, state == TCP_LISTEN, bool(mine), peer)
        try:
            listening = bool(s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:
            listening = False  # a family that cannot listen
        where = f"listening on {mine}" if listening else f"{mine} to {theirs}" if theirs else mine
        return Socket(family, kind, ino, where, listening)
