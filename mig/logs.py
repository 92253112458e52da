"""The log of omdiscd and its helpers on standard error: for the journal where that reads it, else with the time; and never a flood.

A line is an event.  Those of a helper say what it is, and the number of the move that it is about.

systemd tells a service by ``JOURNAL_STREAM`` which descriptor its journal reads (systemd.exec(5)); lines there begin with their severity as
``<3>`` to ``<7>`` (sd-daemon(3)), and the journal adds the time.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MOST = 30
"""Lines of one kind (of one place in the source) in :data:`PERIOD`; more are counted only.  More: nothing is missed; cost: a peer or user
who makes us complain fills the disk."""
MOST_OF_HELPERS = 100
"""The same for a helper, which has a dozen steps of each move to tell."""
PERIOD = 10.0

_MOVE = "MIG_MOVE"
_SEVERITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def to_stderr(level: int = logging.INFO, who: str = "") -> None:
    """Set the log of this process up.  ``who``: which helper it is."""
    handler = logging.StreamHandler(sys.stderr)
    begin = f"{who}: " if who else ""
    file = logging.Formatter(f"%(asctime)s %(levelname)s {begin}%(message)s")
    handler.setFormatter(JournalFormatter(f"{begin}%(message)s") if journal_reads(2) else file)
    handler.addFilter(RateFilter(Rates(MOST_OF_HELPERS if who else MOST), time.monotonic))
    handler.addFilter(_marked)
    logging.basicConfig(level=level, handlers=[handler])


def about(move: str) -> None:
    """What is logged from now on, here and by helpers that are started from here, is about this move; "": about none."""
    if move:
        os.environ[_MOVE] = move
    else:
        os.environ.pop(_MOVE, None)


def _marked(record: logging.LogRecord) -> bool:
    move = os.environ.get(_MOVE, "")
    if move and move not in (text := record.getMessage()):
        record.msg, record.args = f"move {move}: {text}", ()
    return True


def journal_reads(fd: int) -> bool:
    """Whether what is written to ``fd`` goes to systemd's journal."""
    try:
        st = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{st.st_dev}:{st.st_ino}"


class JournalFormatter(logging.Formatter):
    """One record, each of its lines with its severity, and no time."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        mark = next((m for least, m in _SEVERITIES if record.levelno >= least), 7)
        return "\n".join(f"<{mark}>{line}" for line in super().format(record).splitlines() or [""])


@dataclass
class Rates:
    """How many lines of each kind came lately.  No I/O, no clock."""

    most: int = MOST
    period: float = PERIOD
    _kinds: dict[object, tuple[float, int]] = field(default_factory=dict)

    def take(self, kind: object, now: float) -> tuple[bool, int]:
        """Whether a line of this kind may be written, and how many were left out since the last one that was."""
        began, count = self._kinds.get(kind, (now, 0))
        left_out = 0
        if now - began >= self.period:
            left_out, began, count = max(0, count - self.most), now, 0
        self._kinds[kind] = began, count + 1
        return count < self.most, left_out


class RateFilter(logging.Filter):
    """Lets :class:`Rates` decide by the place in the source where a record was made; errors and what is debugged always pass."""

    def __init__(self, rates: Rates, clock: Callable[[], float]) -> None:
        super().__init__()
        self.rates, self.clock = rates, clock

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; the first one after others were left out says how many."""
        if record.levelno >= logging.ERROR or record.levelno <= logging.DEBUG:
            return True
        passes, left_out = self.rates.take((record.name, record.pathname, record.lineno), self.clock())
        if passes and left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} lines like this were left out before)", ()
        return passes
