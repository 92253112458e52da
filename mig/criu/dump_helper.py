"""Main program of the dump helper (see :mod:`mig.criu.dumper`)."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from mig import wire
from mig.criu import layout, options
from mig.criu.log import CriuError
from mig.criu.session import Worker
from mig.errors import MigError
from mig.kernel import libc, procfs

_NAMESPACES = ("ipc", "uts", "pid", "time_for_children", "mnt")
_OPTIONAL = "time_for_children"  # since Linux 5.6
_CLOCKS = "timens-0.img"


def _enter(cell_init: int) -> None:
    """Into a cell's namespaces; returns in a child that is really inside its pid namespace, never in the caller."""
    ns = f"/proc/{cell_init}/ns"
    names = [name for name in _NAMESPACES if name != _OPTIONAL or os.path.exists(f"/proc/self/ns/{name}")]
    held = [os.open(f"{ns}/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]
    for fd in held:
        libc.setns(fd)
        os.close(fd)
    child = os.fork()
    if child:
        # the pid namespace is that of children only: this process waits outside, and its death is the child's
        libc.close_range(0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.pdeathsig()


def _external(pid: int) -> list[str]:
    """``/dev/tty`` opened by members whose terminal is the root's: CRIU dumps it only for a session's leader in the foreground."""
    terminals = {procfs.stat(p).tty_nr for p in procfs.tree(pid)} - {0}
    if not terminals or terminals != {procfs.stat(pid).tty_nr}:
        return []
    node = os.stat("/dev/tty")
    return [f"tty[{node.st_rdev:x}:{node.st_dev:x}]"]


def _dump(worker: Worker, img_fd: int, m: wire.Message) -> dict[str, Any]:
    mode = m["memory"].get("mode")
    if mode != "full":
        raise CriuError(f"this node cannot leave memory out of a dump (asked for {mode!r})")
    began = time.perf_counter()
    worker.call(options.dump(m["pid"], img_fd, m["freeze_cgroup"], _external(m["pid"])))
    took = (time.perf_counter() - began) * 1e3
    if os.path.exists(f"/proc/self/fd/{img_fd}/{_CLOCKS}"):
        os.unlink(_CLOCKS, dir_fd=img_fd)  # CRIU would start the clocks where they stood at the dump; the cell has home's
    with os.scandir(img_fd) as found:
        pages = sum(e.stat().st_size for e in found if e.name.startswith("pages-"))
    return {"ms": {"criu": round(took, 2)}, "pages_bytes": pages}


def _serve(task: dict[str, Any], sock: socket.socket) -> None:
    shim = layout.needs_shim()
    base = task["base"]
    layout.rpc()  # inside the cell, imports would come from another machine's files
    if task["cell_init"] is not None:
        _enter(task["cell_init"])
        base = base or (layout.CELL_BASE if os.path.isdir(layout.CELL_BASE) else None)
    worker = Worker.start(base=base, shim=shim)
    wire.send(sock, op="started")
    try:
        wire.send(sock, op="dumped", **_dump(worker, task["img_fd"], wire.recv(sock)))
        wire.recv(sock)  # until the caller lets us go
    except EOFError:
        pass
    finally:
        worker.close()


def main() -> None:
    """Serve one dump over the socket named in the argument."""
    task = json.loads(sys.argv[1])
    libc.pdeathsig()
    if os.getppid() != task["parent"]:
        sys.exit(1)  # it died before we could ask to die with it
    with socket.socket(fileno=task["sock"]) as sock:
        try:
            _serve(task, sock)
        except (MigError, OSError, ImportError) as e:
            error = e if isinstance(e, MigError) else MigError(f"the dump helper failed: {e}")
            try:
                wire.send(sock, op="failed", first_error=getattr(e, "first_error", ""), **error.to_wire())
            except ConnectionError:
                pass  # nobody waits for the answer any more


if __name__ == "__main__":
    main()
