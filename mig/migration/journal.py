"""The journal of a move: a few records on each side, each made durable before what it announces is done.

It lies in the run-time directory (a tmpfs): a reboot ends journal and processes together, and the boot id tells the other side.
Source records: BEGIN, at home CAPTURED, FROZEN, UNLOCKED and NAMED with what an undo needs to know, COMMIT, then ARRIVED or ROLLED-BACK.
Destination records: PREPARED, then RUNNING or ABORTED (the tombstone: a copy
that may never start).  The two sides of a move on one machine (home -> home) have files of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from mig import paths
from mig.kernel import pidfd
from mig.model import ProcessId

BEGIN, COMMIT, ARRIVED, ROLLED_BACK = "BEGIN", "COMMIT", "ARRIVED", "ROLLED-BACK"
CAPTURED, FROZEN, UNLOCKED, NAMED = "CAPTURED", "FROZEN", "UNLOCKED", "NAMED"
PREPARED, RUNNING, ABORTED = "PREPARED", "RUNNING", "ABORTED"


@dataclass(frozen=True)
class Record:
    """One line of a journal: its name and what was noted with it."""

    name: str
    data: dict[str, Any]


class Journal:
    """The records of one side (``source`` or ``destination``) of the move ``mid``."""

    def __init__(self, mid: str, side: str, directory: Path | None = None) -> None:
        if "/" in mid or mid.startswith("."):
            raise ValueError(f"not a move id: {mid!r}")
        self.path = (directory or paths.JOURNAL) / f"{mid}.{side}"

    def write(self, name: str, **data: Any) -> None:
        """Append a record and make it durable; raises ``OSError`` when it could not be."""
        line: bytes = msgpack.packb([name, data], use_bin_type=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, len(line).to_bytes(4, "little") + line)
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self) -> list[Record]:
        """All whole records; a torn last one is left out.  Empty when there is no journal."""
        try:
            b = self.path.read_bytes()
        except FileNotFoundError:
            return []
        out, at = [], 0
        while at + 4 <= len(b):
            n = int.from_bytes(b[at : at + 4], "little")
            if at + 4 + n > len(b):
                break
            name, data = msgpack.unpackb(b[at + 4 : at + 4 + n], raw=False)
            out.append(Record(name, data))
            at += 4 + n
        return out

    def names(self) -> list[str]:
        """The names of all records, oldest first."""
        return [r.name for r in self.read()]

    def forget(self) -> None:
        """Remove the file; nothing happens when there is none."""
        self.path.unlink(missing_ok=True)


def verdict(mid: str, directory: Path | None = None) -> str:
    """What this node, as a destination, says of the move ``mid``: ``running``, ``aborted``, or ``pending`` while a keeper decides.

    A move that this node knows nothing of is ``aborted``: its keeper never came to life, or the node has been rebooted since.  So is one
    whose keeper died before it wrote RUNNING.
    """
    records = {r.name: r.data for r in Journal(mid, "destination", directory).read()}
    if RUNNING in records:
        return "running"
    if not records or ABORTED in records:
        return "aborted"
    keeper = records[PREPARED]
    if "start" in keeper and not pidfd.still(ProcessId(int(keeper["keeper"]), int(keeper["start"]), str(keeper["boot"]))):
        return "aborted"  # killed before GO was accepted: its cell was frozen and died with it
    return "pending"


def unfinished(directory: Path | None = None) -> list[str]:
    """Ids of moves whose source began on this node and has no end in its journal."""
    out = []
    for f in sorted((directory or paths.JOURNAL).glob("*.source")):
        mid = f.name.removesuffix(".source")
        if not {ARRIVED, ROLLED_BACK} & set(Journal(mid, "source", directory).names()):
            out.append(mid)
    return out
