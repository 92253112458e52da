"""Which way memory goes: the ladder of modes, chosen from what both nodes can do, the process, and what the caller wants.  Pure.

``pre-copy``   pages are sent while the process runs, what was written meanwhile follows after the resume
``post-copy``  memory stays hidden from the dump and follows after the resume
``full``       everything is dumped, sent and restored in the pause

Beside the ladder stands ``pre-copy-only``: as ``pre-copy``, but what was written meanwhile goes in the pause, so that nothing stays behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["pre-copy", "pre-copy-only", "post-copy", "full"]
MODES = ("auto", "pre-copy", "pre-copy-only", "post-copy", "full")
LEAVING = "leaving"
"""What is wanted where the node may go down when its guests have left: nothing may stay behind.  Not a mode that a user can name."""
_GOES_DOWN = "its node may go down: nothing may stay behind"
WORTH_HIDING = 8 << 20
"""Bytes of memory from which on it pays to leave them out of the dump: below, a dump takes less than what hiding adds (about 5 ms)."""
WORTH_PRECOPY = 64 << 20
"""Bytes from which on it pays to send pages before the freeze."""


@dataclass(frozen=True)
class Situation:
    """``hideable``: bytes of memory that can be left out; ``record_locks``: the process holds POSIX locks; ``lazy``: userfaultfd and
    CRIU's lazy restore are there on this node; ``no_shim``: why CRIU cannot be made to leave anything out."""

    hideable: int
    record_locks: bool = False
    lazy: bool = True
    no_shim: str = ""


def choose(wanted: str, s: Situation) -> tuple[Mode, str]:
    """The mode, and why not a higher one (``""``: it is the highest, or was asked for)."""
    if wanted == "full":
        return "full", ""
    if not s.lazy:
        return "full", "userfaultfd or CRIU's lazy restore is missing on this node"
    if s.no_shim:
        return "full", f"{s.no_shim}: run `make env` on this node"
    if s.record_locks:
        return "full", "it holds record locks, which CRIU does not restore beside lazy pages"
    if wanted in ("auto", LEAVING) and s.hideable < WORTH_HIDING:
        return "full", f"only {s.hideable >> 20} MiB of its memory can be left out of the dump"
    if wanted == "post-copy":
        return "post-copy", ""
    if wanted in ("pre-copy-only", LEAVING):
        if wanted == LEAVING and s.hideable < WORTH_PRECOPY:
            return "full", f"only {s.hideable >> 20} MiB could be sent before the freeze, and {_GOES_DOWN}"
        return "pre-copy-only", _GOES_DOWN if wanted == LEAVING else ""
    if wanted == "auto" and s.hideable < WORTH_PRECOPY:
        return "post-copy", f"only {s.hideable >> 20} MiB could be sent before the freeze"
    return "pre-copy", ""
