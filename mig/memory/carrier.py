"""How the memory of a process travels: the interface that a migration knows, and the full dump.

The places where other carriers do their work: before the freeze (``precopy``: rounds of pages while the process runs), in the dump
(``dump_options``: what CRIU is to leave out), after READY and after the resume (``serve``: answer page faults, push the rest).  A full
dump has nothing to do in the first and the last: all memory is in the images, so the pause grows with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class Moved:
    """What a carrier moved: bytes of memory, and rounds before the freeze."""

    bytes: int = 0
    rounds: int = 0


class Carrier(Protocol):
    """One move's way of carrying memory."""

    mode: str

    async def precopy(self) -> Moved:
        """Send pages while the process runs; returns what was sent."""

    def dump_options(self) -> dict[str, Any]:
        """For :meth:`mig.criu.dumper.Dumper.dump`: what CRIU has to leave out of its images."""

    async def serve(self) -> Moved:
        """From READY on: everything the images do not hold; returns when the destination has all of it."""


class FullDump:
    """All memory in CRIU's images, carried inside the freeze."""

    mode = "full"

    async def precopy(self) -> Moved:
        """Nothing goes before the freeze."""
        return Moved()

    def dump_options(self) -> dict[str, Any]:
        """CRIU dumps everything."""
        return {"mode": "full"}

    async def serve(self) -> Moved:
        """The images held everything."""
        return Moved()
