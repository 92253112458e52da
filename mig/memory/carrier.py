"""How the memory of a process travels: the interface that a migration knows, and the full dump.

The places where other carriers do their work: while the move is prepared (``prepare``), before the freeze (``precopy``: rounds of pages
while the process runs), at the freeze (``frozen``), in the dump (``dump_options``: what CRIU is to leave out; ``dumped``), with the
images (``head``), and after the resume (``serve``: answer page faults, push the rest).  A full dump has nothing to do in any of them:
all memory is in the images, so the pause grows with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from mig.criu.dumper import DumpResult


@dataclass
class Moved:
    """What a carrier moved: bytes on the wire, and rounds before the freeze."""

    bytes: int = 0
    rounds: int = 0


class Carrier(Protocol):
    """One move's way of carrying memory.  ``mode`` is the rung of the ladder (:mod:`mig.memory.ladder`), ``why`` the reason for it."""

    mode: str
    why: str

    @property
    def to_the_end(self) -> bool:
        """Whether the destination must have fetched everything before the commit."""

    async def prepare(self) -> dict[str, Any]:
        """Start what this side needs; returns what the destination must know (``memory`` of the prepare message)."""

    async def precopy(self) -> Moved:
        """Send pages while the process runs; returns what was sent."""

    async def frozen(self) -> None:
        """The processes stand still."""

    def dump_options(self) -> dict[str, Any]:
        """For :meth:`mig.criu.dumper.Dumper.dump`: what CRIU has to leave out of its images."""

    async def dumped(self, result: DumpResult) -> None:
        """CRIU has dumped."""

    def head(self) -> dict[str, Any]:
        """What goes along with the images."""

    async def serve(self) -> Moved:
        """The destination's copy runs: returns when it has all of the memory."""

    async def close(self) -> None:
        """Free everything on this side; idempotent."""


class FullDump:
    """All memory in CRIU's images, carried inside the freeze."""

    mode = "full"
    to_the_end = False
    """The images hold everything."""

    def __init__(self, why: str = "") -> None:
        self.why = why

    async def prepare(self) -> dict[str, Any]:
        """The destination needs to know nothing."""
        return {}

    async def precopy(self) -> Moved:
        """Nothing goes before the freeze."""
        return Moved()

    async def frozen(self) -> None:
        """Nothing to do."""

    def dump_options(self) -> dict[str, Any]:
        """CRIU dumps everything."""
        return {"mode": "full"}

    async def dumped(self, result: DumpResult) -> None:
        """Nothing to do."""

    def head(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}

    async def serve(self) -> Moved:
        """The images held everything."""
        return Moved()

    async def close(self) -> None:
        """Nothing to free."""
