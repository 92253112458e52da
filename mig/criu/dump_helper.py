"""Main program of the dump helper (see :mod:`mig.criu.dumper`)."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from mig import wire
from mig.criu import images, layout, options
from mig.criu.log import CriuError
from mig.criu.session import Worker
from mig.errors import MigError
from mig.kernel import libc, pagemap, procfs
from mig.memory import hide

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


class _Hider:
    """What is left out of one dump."""

    def __init__(self, img_fd: int, *, reads: bool) -> None:
        self.img_fd, self.reads = img_fd, reads
        self.before: dict[int, list[hide.Area]] = {}
        self.pids: list[int] = []

    def look(self, pids: list[int]) -> int:
        """Read, while the processes run, what is slow to read; returns the bytes that can be hidden."""
        for p in pids:
            try:
                self.before[p] = hide.read_areas(p)
            except ProcessLookupError:
                continue  # it has ended meanwhile
        return sum(a.size for areas in self.before.values() for a in areas if a.hidden)

    def hide(self, pids: list[int]) -> list[tuple[int, list[tuple[int, int]]]]:
        """The processes stand still: make the fakes; returns the hidden ranges of each."""
        self.pids = pids
        out = []
        for p in pids:
            maps = os.fsdecode(Path(f"/proc/{p}/maps").read_bytes())
            areas = hide.refresh(self.before.get(p, []), maps) or hide.read_areas(p)
            out.append((p, hide.write_fakes(p, areas, self.img_fd, reads=self.reads)))
        return out

    def clean(self) -> None:
        """CRIU has seen enough."""
        hide.remove_fakes(self.pids, self.img_fd)


def _dump(worker: Worker, img_fd: int, m: wire.Message, hider: _Hider) -> dict[str, Any]:
    mode = m["memory"].get("mode")
    if mode not in ("full", "hidden"):
        raise CriuError(f"this node cannot leave memory out of a dump (asked for {mode!r})")
    began = time.perf_counter()
    hidden = hider.hide(list(m["memory"]["pids"])) if mode == "hidden" else []
    ready = time.perf_counter()
    try:
        worker.call(options.dump(m["pid"], img_fd, m["freeze_cgroup"], _external(m["pid"])))
    finally:
        hider.clean()
    dumped = time.perf_counter()
    if hidden:
        images.not_lazy(f"/proc/self/fd/{img_fd}")
    if os.path.exists(f"/proc/self/fd/{img_fd}/{_CLOCKS}"):
        os.unlink(_CLOCKS, dir_fd=img_fd)  # CRIU would start the clocks where they stood at the dump; the cell has home's
    with os.scandir(img_fd) as found:
        pages = sum(e.stat().st_size for e in found if e.name.startswith("pages-"))
    ms = {"hide": ready - began, "criu": dumped - ready, "rest": time.perf_counter() - dumped}
    return {"ms": {k: round(v * 1e3, 2) for k, v in ms.items()}, "pages_bytes": pages, "hidden": hidden}


def _serve(task: dict[str, Any], sock: socket.socket) -> None:
    hides = bool(task["hides"])
    shim = hides or layout.needs_shim()
    base = task["base"]
    layout.rpc()  # inside the cell, imports would come from another machine's files
    layout.image("pagemap")
    if task["cell_init"] is not None:
        _enter(task["cell_init"])
        base = base or (layout.CELL_BASE if os.path.isdir(layout.CELL_BASE) else None)
    img_fd = task["img_fd"]
    env = {"MIG_FAKE": str(img_fd)} if hides else {}
    worker = Worker.start(base=base, shim=shim, pass_fds=[img_fd] if hides else [], env=env)
    hider = _Hider(img_fd, reads=not pagemap.scans() or worker.major < 4)
    wire.send(sock, op="started")
    try:
        while (m := wire.recv(sock))["op"] == "look":
            wire.send(sock, op="looked", bytes=hider.look(list(m["pids"])))
        wire.send(sock, op="dumped", **_dump(worker, img_fd, m, hider))
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
