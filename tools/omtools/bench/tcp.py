"""Every file of a directory through one TCP connection into another directory: what an administrator's script would do between nodes."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

_HEAD = struct.Struct("<QI")
_CHUNK = 1 << 20


def copy(source: Path, target: Path) -> int:
    """Copy by TCP over the loopback; returns bytes.  The receiver writes while the sender reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        taking = threading.Thread(target=_receive, args=(receiver, target))
        taking.start()
        total = _send(sender, source)
        sender.shutdown(socket.SHUT_WR)
        taking.join()
    return total


def _send(sock: socket.socket, source: Path) -> int:
    total = 0
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        size, name = path.stat().st_size, path.name.encode()
        sock.sendall(_HEAD.pack(size, len(name)) + name)
        with open(path, "rb") as f:
            done = 0
            while done < size:
                done += os.sendfile(sock.fileno(), f.fileno(), done, size - done)
        total += size
    return total


def _receive(sock: socket.socket, target: Path) -> None:
    with sock, sock.makefile("rb", buffering=_CHUNK) as stream:
        while head := stream.read(_HEAD.size):
            size, length = _HEAD.unpack(head)
            with open(target / stream.read(length).decode(), "wb") as out:
                while size:
                    data = stream.read(min(size, _CHUNK))
                    if not data:
                        raise EOFError("the sender closed in the middle of a file")
                    out.write(data)
                    size -= len(data)
