"""A keeper for tests: owns one cell over a copy of this machine's tree, and does what it is told over a socket (descriptor argv[1]).

Home's files are an overlay of ``/`` on a tmpfs here, which has the mount points that home's file server would show.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from mig import wire
from mig.cell.cell import Cell, Continued, Exited, Stopped
from mig.cell.spec import CellSpec, Given
from mig.errors import MigError
from mig.kernel import libc
from mig.model import ProcessFacts


def home_tree(work: Path, kdat: str) -> str:
    """Mount it, in a mount namespace of our own; a node's /run is a tmpfs with CRIU's cache."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    layers = work / "layers"
    layers.mkdir()
    libc.mount("tmpfs", layers, "tmpfs")
    for d in ("upper", "work", "root"):
        (layers / d).mkdir()
    root = layers / "root"
    libc.mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work")
    (root / ".cell").mkdir()
    (root / "run/criu.kdat").touch()
    libc.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    shutil.copy(kdat, "/run/criu.kdat")
    return str(root)


def send(sock: socket.socket, *fds: int, **m: Any) -> None:
    """One message with descriptors."""
    socket.send_fds(sock, [wire.pack(m)[4:]], fds)


def start(sock: socket.socket, m: dict[str, Any]) -> Cell:
    """Make the cell; the far ends of its pipes and the terminal's master go to the test."""
    work = Path(m["work"])
    root = home_tree(work, m["kdat"])
    facts = ProcessFacts.from_map(m["facts"])
    given: list[Given] = []
    far: list[int] = []
    for e in facts.externals:
        if e.kind == "pipe":
            ends = os.pipe()
            given.append(Given(e, *(ends if e.dir == "r" else ends[::-1])[:1]))
            far.append(ends[1] if e.dir == "r" else ends[0])
        else:
            given.append(Given(e))
    img_fd = os.open(m["img"], os.O_RDONLY | os.O_DIRECTORY)
    began = time.perf_counter()
    cell = Cell.start(CellSpec(m["mode"], root if m["mode"] == "remote" else "", work, img_fd, Path(m["cgroup"]), facts, given))
    ms = (time.perf_counter() - began) * 1e3
    if cell.tty_master is not None:
        far.append(cell.tty_master)
    send(sock, *far, op="started", init=cell.init_pid, ms=ms, guest_cgroup=str(cell.guest_cgroup.path), freezer=cell.freezer)
    for fd in far:
        os.close(fd)
    return cell


async def watch(sock: socket.socket, cell: Cell) -> None:
    """Pass the guest's events on."""
    async for e in cell.events():
        match e:
            case Exited():
                send(sock, op="exited", status=e.status, utime=e.utime, stime=e.stime)
            case Stopped():
                send(sock, op="stopped", sig=e.sig)
            case Continued():
                send(sock, op="continued")


async def obey(sock: socket.socket, cell: Cell, m: dict[str, Any]) -> dict[str, Any]:
    """One order."""
    began = time.perf_counter()
    match m["op"]:
        case "restore":
            await cell.restore()
        case "freeze":
            cell.cgroup.freeze()
        case "go":
            cell.cgroup.thaw()
            pid = await cell.release()
            return {"pid": pid, "host_pid": cell.guest_pid, "ms": (time.perf_counter() - began) * 1e3}
        case "foreground":
            await cell.set_foreground(m["on"])
        case "signal":
            cell.signal(m["sig"])
        case "kill":
            cell.kill()
    return {"ms": (time.perf_counter() - began) * 1e3}


async def serve(sock: socket.socket, cell: Cell) -> None:
    """Until the test closes its end."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    watcher: asyncio.Task[None] | None = None
    try:
        while packet := await loop.sock_recv(sock, 1 << 16):
            m = wire.unpack(packet)
            try:
                send(sock, op="done", **await obey(sock, cell, m))
            except MigError as e:
                send(sock, **{"op": "failed"} | e.to_wire())
            if m["op"] == "go":
                watcher = asyncio.create_task(watch(sock, cell))
    finally:
        if watcher is not None:
            watcher.cancel()
        cell.kill()


def main() -> None:
    """Serve one cell."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        cell = start(sock, wire.unpack(sock.recv(1 << 20)))
    except MigError as e:
        send(sock, **{"op": "failed"} | e.to_wire())
        return
    asyncio.run(serve(sock, cell))


if __name__ == "__main__":
    main()
