"""A cell with everything that is put around it before the guest comes: home's files, cgroups, the guest's ends of what is proxied."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mig.cell.cell import Cell
from mig.cell.proxies import Proxies
from mig.cell.spec import CellSpec
from mig.homefs import mount
from mig.kernel import cgroup, libc
from mig.model import ProcessFacts


class House:
    """One prepared cell; ``took_ms`` for all of it.  In mode ``remote`` home's files are mounted at ``work/root``, seen by nobody else."""

    def __init__(
        self,
        mid: str,
        mode: str,
        facts: ProcessFacts,
        work: Path,
        files: mount.Connections | None,
        proxies: Proxies,
        clocks: tuple[int, int],
    ) -> None:
        """Blocking.  ``files``: connections to home's file server (mode ``remote``); ``clocks``: as in :class:`CellSpec`.

        Raises :class:`mig.errors.MigError`.
        """
        began = time.monotonic()
        self.root = ""
        self.files: mount.FuseMount | None = None
        self.img_fd = os.open(work / "img", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if files is not None:
            root = work / "root"
            root.mkdir()
            self.root = str(root)
            self.files = mount.FuseMount(root, *files)
        spec = CellSpec(
            mode="home" if mode == "home" else "remote", root=self.root, work=work, img_fd=self.img_fd,
            cgroup=cgroup.root() / f"mig-cell-{mid}", facts=facts, externals=proxies.given(), clocks=clocks,
        )  # fmt: skip
        try:
            self.cell = Cell.start(spec)
        except BaseException:
            self.close()
            raise
        self.took_ms = (time.monotonic() - began) * 1e3

    def sync(self) -> None:
        """What the guest wrote to mapped files is at home when this returns."""
        if self.root:
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                libc.syncfs(fd)
            finally:
                os.close(fd)

    def end(self) -> None:
        """Kill everything in the cell.  Home's files go first: a dying process would wait for a silent home to flush its files."""
        if self.files is not None:
            self.files.abort()
        self.cell.kill()

    def close(self) -> None:
        """Unmount and let go; the cell must have been ended.  Idempotent."""
        if self.files is not None:
            self.files.close()
            self.files = None
        if self.img_fd >= 0:
            os.close(self.img_fd)
            self.img_fd = -1
