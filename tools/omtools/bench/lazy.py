"""CRIU's own lazy pages, from the network of a lab's first node to that of its second, where our moves go as well.

``python -m omtools.bench.lazy PROGRAM LAB MIB FD FD`` is one run; the descriptors are those of the two network namespaces.  It is started
as :mod:`omtools.bench.peers` is (:func:`command`), for the same reasons, and prints one JSON map.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mig.criu import layout
from mig.errors import MigError
from mig.kernel import libc, procfs
from omtools.bench import peers, tcp
from omtools.bench.target import START, Diary
from omtools.moslab import lab as labs

_PORT = "27000"
_PIPE = 4 << 20
_STARTED = b"\0"
"""What CRIU writes to ``--status-fd`` when it listens."""


def measure(program: Path, nodes: labs.Lab, mib: int) -> dict[str, Any]:
    """One run: ``felt`` and ``total`` (ms), ``before`` and ``first_second`` (work), ``resident``.  Raises :class:`MigError`."""
    with contextlib.ExitStack() as stack:
        fds = []
        for node in nodes.nodes[:2]:
            fds.append(os.open(f"/proc/{nodes.pid_file(node).read_text().strip()}/ns/net", os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        stack.enter_context(_large_pipes())
        argv = command(program, nodes.name, mib, fds)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, pass_fds=fds)
    if done.returncode:
        raise MigError("CRIU's lazy pages could not be measured", reasons=done.stderr.strip().splitlines()[-3:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def _large_pipes() -> Iterator[None]:
    """CRIU's page server wants pipes of 4 MiB, and without CAP_SYS_RESOURCE (in a container) fails at the first page where it gets none."""
    limit = Path("/proc/sys/fs/pipe-max-size")
    before = limit.read_text()
    limit.write_text(str(max(int(before), _PIPE)))
    try:
        yield
    finally:
        limit.write_text(before)


def command(program: Path, lab: str, mib: int, networks: list[int]) -> list[str]:
    """How to start this module."""
    return [*peers.OWN_WORLD, sys.executable, "-m", "omtools.bench.lazy", str(program), lab, str(mib), *map(str, networks)]


def _run(program: Path, nodes: labs.Lab, mib: int, networks: list[int]) -> dict[str, Any]:
    first, second = peers.WORK / "images", peers.WORK / "copy"
    for d in (first, second):
        d.mkdir(parents=True)
    here, there = networks
    libc.setns(here, libc.CLONE_NEWNET)
    Path("/proc/sys/kernel/ns_last_pid").write_text("1000")  # far from the pids of CRIU's own processes in the second namespace
    who = peers.launch(program, mib).pid
    diary = Diary(peers.WORK / "diary", lambda: os.kill(who, signal.SIGUSR1))
    diary.wait_ready()

    def work() -> int:
        diary.longest()
        return diary.steps()

    start = work()
    time.sleep(1.0)
    before, resident = work() - start, procfs.status(who).rss
    criu = layout.command()
    began = time.monotonic()
    server = ["--lazy-pages", "--address", "0.0.0.0", "--port", _PORT]
    dump = [*criu, "dump", "-t", str(who), "-D", str(first), "-o", "dump.log", *server, *peers.COMMON]
    _until_it_listens(dump, first / "dump.log")
    libc.setns(there, libc.CLONE_NEWNET)
    tcp.copy(first, second)  # small here, so it takes the loopback
    client = ["--page-server", "--address", nodes.nodes[0].addr, "--port", _PORT]
    pages = [*criu, "lazy-pages", "-D", str(second), "-W", str(second), "-o", "lazy.log", *client]
    _until_it_listens(pages, second / "lazy.log")
    # the pid is taken here until all pages have gone, so the copy lives in a pid namespace of its own, of which CRIU is the first process
    restore = [*peers.OWN_WORLD, *criu, "restore", "-D", str(second), "-v4", "-o", "restore.log", "--lazy-pages", *peers.COMMON]
    criu_there = subprocess.Popen(restore, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    who = _copy(who, criu_there, second / "restore.log")
    total = (time.monotonic() - began) * 1e3
    felt = diary.longest()
    at = diary.steps()
    time.sleep(1.0)
    return {"felt": felt, "total": total, "before": before, "first_second": work() - at, "resident": resident}


def _until_it_listens(argv: list[str], log: Path) -> None:
    """Start a CRIU that stays; returns when it listens.  Raises :class:`MigError`."""
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as said:
        process = subprocess.Popen(
            [*argv, "--status-fd", str(write)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        if said.read(1) != _STARTED:
            process.wait()
            raise MigError(f"CRIU does not serve pages: {peers.errors(log)}")


def _copy(original: int, criu: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of the restored process, as soon as it runs; raises :class:`MigError`."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and criu.poll() is None:
        if log.exists() and "Restore finished successfully" in log.read_text(errors="replace"):
            return next(p for p in procfs.tree(criu.pid) if procfs.status(p).nspid[-1] == original)
        time.sleep(0.002)
    raise MigError(f"CRIU has not restored: {peers.errors(log)}")


def main() -> int:
    """One run."""
    program, lab, mib, *networks = sys.argv[1:]
    nodes = labs.load(lab)
    peers.settle(nodes)
    try:
        print(json.dumps(_run(Path(program), nodes, int(mib), [int(n) for n in networks])))
        return 0
    except MigError as e:
        print("; ".join(e.lines()), file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
