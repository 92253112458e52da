"""What a cell is made from, and what can be said of a guest in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mig import paths
from mig.errors import MigError
from mig.model import External, ProcessFacts

Mode = Literal["remote", "home"]


class CellError(MigError):
    """A cell could not be made, or the guest could not be restored in it.  ``step`` names what failed; CRIU's words are in ``reasons``."""

    code = "cell"

    def __init__(self, step: str, message: str, *, reasons: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(f"cell, {step}: {message}", reasons=list(reasons), hint=hint)
        self.step = step


@dataclass
class Given:
    """What the guest gets in place of something that it shares with the world at home.

    ``fd`` is the guest's end of a pipe; the terminal has none (-1), its slave is made in the cell.  ``alt_fd`` is another end that
    :meth:`Cell.restore` may be told to give instead (at home: a pipe that holds what was read too early, or the real one).
    """

    external: External
    fd: int = -1
    alt_fd: int = -1


@dataclass
class CellSpec:
    """Everything that :meth:`mig.cell.cell.Cell.start` needs.

    ``root``: where home's files are mounted (a mount point in the caller's mount namespace, with the mount points ``/.cell`` and
    ``/run/criu.kdat`` in it); unused in mode ``home``, where the cell sees this node's own tree.  ``work``: a directory of this cell's
    own on this node.  ``img_fd``: the image directory.  ``cgroup``: a cgroup-v2 directory, made here and removed by ``kill``.
    ``clocks``: nanoseconds by which home's CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of this node's (mode ``remote``).
    """

    mode: Mode
    root: str
    work: Path
    img_fd: int
    cgroup: Path
    facts: ProcessFacts
    externals: list[Given] = field(default_factory=list)
    clocks: tuple[int, int] = (0, 0)
    criu_dir: Path = field(default_factory=lambda: paths.libexec() / "criu")

    @property
    def terminal(self) -> External | None:
        """The terminal among the externals."""
        return next((g.external for g in self.externals if g.external.kind == "tty"), None)

    @property
    def terminal_is_led(self) -> bool:
        """Whether the terminal is the controlling one of a session that one of ours leads, not the guest itself."""
        f = self.facts
        return self.terminal is not None and f.tty_nr != 0 and f.sid not in (0, f.pid)

    @property
    def pipes(self) -> list[Given]:
        """The pipe ends among the externals."""
        return [g for g in self.externals if g.external.kind == "pipe"]

    @property
    def given_fds(self) -> list[int]:
        """The guest's ends of its pipes."""
        return [fd for g in self.pipes for fd in (g.fd, g.alt_fd) if fd >= 0]


@dataclass(frozen=True)
class Exited:
    """The guest ended: its wait status, and the CPU seconds of it and of the children it waited for."""

    status: int
    utime: float
    stime: float


@dataclass(frozen=True)
class Stopped:
    """The guest was stopped by signal ``sig``."""

    sig: int


@dataclass(frozen=True)
class Continued:
    """The guest goes on after a stop."""


Event = Exited | Stopped | Continued
