"""The dump helper: from outside, from inside a cell's namespaces, and what becomes of it when its parent dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mig.criu import images, layout
from mig.criu.dumper import Dumper, DumpResult
from mig.criu.log import CriuError
from mig.kernel import cgroup, procfs
from tests.kernel.criu_guest import Guest, Start, guests, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with guests(tmp_path) as begin:
        yield begin


async def dump_once(g: Guest, pid: int, group: Path, **where: object) -> DumpResult:
    dumper = await Dumper.start(g.img_fd, **where)  # type: ignore[arg-type]
    try:
        g.group.freeze()
        return await dumper.dump(pid, str(group))
    finally:
        await dumper.close()


@pytest.mark.parametrize("user", [0, 65534])
def test_a_helper_dumps_and_the_guest_comes_back(start: Start, user: int) -> None:
    g = start("count", user=user, group=user, extra_groups=[])
    result = asyncio.run(dump_once(g, g.pid, g.group.path))
    assert result.pages_bytes == sum(f.stat().st_size for f in g.images.glob("pages-*.img")) > 0
    assert result.ms["criu"] > 0
    assert g.group.is_frozen()
    g.end()
    at_dump = len(g.lines())
    g.restore()
    until(lambda: len(g.lines()) > at_dump, "numbers after the restore")


def test_a_failed_dump_travels_with_its_first_error_and_remedy(start: Start) -> None:
    g = start("inet")
    with pytest.raises(CriuError) as e:
        asyncio.run(dump_once(g, g.pid, g.group.path))
    assert "Connected TCP socket" in e.value.first_error
    assert "network connections" in e.value.hint


def test_an_unknown_way_of_carrying_memory_is_refused(start: Start) -> None:
    g = start("count")

    async def run() -> None:
        dumper = await Dumper.start(g.img_fd)
        try:
            await dumper.dump(g.pid, str(g.group.path), memory={"mode": "telepathy"})
        finally:
            await dumper.close()

    with pytest.raises(CriuError, match="telepathy"):
        asyncio.run(run())


def test_a_helper_that_cannot_enter_says_why(start: Start) -> None:
    g = start("count")
    with pytest.raises(CriuError, match="No such file"):
        asyncio.run(dump_once(g, g.pid, g.group.path, cell_init=2**22 + 1))


def test_a_helper_dumps_inside_a_pid_and_mount_namespace(tmp_path: Path) -> None:
    """As in a cell: pids are the cell's, CRIU is reached under the path that the cell gives it, images go to a directory held open."""
    work = tmp_path / "cell"
    work.mkdir()
    out = tmp_path / "out"
    with guests(tmp_path):
        # the guest's files are opened inside: CRIU cannot follow descriptors from another mount namespace
        guest_line = f"setsid {tmp_path}/criu_guest count > {out} 2>&1"
        script = f"mount --bind {layout.base()} /mnt || exit 1; mkfifo {work}/hold; {guest_line} & read < {work}/hold"
        init = subprocess.Popen(
            ["unshare", "--pid", "--mount", "--ipc", "--uts", "--mount-proc", "--fork", "--kill-child", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        group = cgroup.Cgroup(cgroup.root() / f"mig-test-criu-{os.getpid()}-cell")
        img = tmp_path / "img"
        img.mkdir()
        img_fd = os.open(img, os.O_RDONLY | os.O_DIRECTORY)
        try:
            until(lambda: out.exists() and "ready" in out.read_text(), "the guest in its namespace")
            cell_init, guest = procfs.tree(init.pid)[1:3]
            inside = procfs.status(guest).nspid[-1]
            assert inside != guest
            group.create()
            group.add(guest)

            async def run() -> DumpResult:
                dumper = await Dumper.start(img_fd, cell_init=cell_init, base="/mnt")
                try:
                    group.freeze()
                    return await dumper.dump(inside, str(group.path))
                finally:
                    await dumper.close()

            result = asyncio.run(run())
            assert result.pages_bytes > 0
            assert group.is_frozen()
            assert (img / f"core-{inside}.img").exists()
            assert any(f.name == str(out) for f in images.list_files(img))
        finally:
            os.close(img_fd)
            init.kill()
            init.wait()
            if group.exists():
                group.kill()
                group.remove()


def test_a_helper_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys, time\n"
        "from mig.criu.dumper import Dumper\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "d = asyncio.run(Dumper.start(fd))\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "started\n"
        helper, worker = procfs.tree(parent.pid)[1:]
        held = [os.pidfd_open(p) for p in (helper, worker)]
        parent.kill()
        parent.wait()
    for fd in held:
        try:
            until(lambda fd=fd: gone(fd), "the helper and its worker to end")  # type: ignore[misc]
        finally:
            os.close(fd)


def gone(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def test_criu_sets_no_breakpoint(start: Start) -> None:
    """It would cost more than the rest of the dump."""
    g = start("count")
    asyncio.run(dump_once(g, g.pid, g.group.path))
    log = (g.images / "dump.log").read_text()
    assert "Expecting exit" in log, "it stops at the system calls before the one that it looks for"
