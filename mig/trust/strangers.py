"""What strangers and broken peers do to us, counted, and written to the log once a minute for each source and kind at most."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

MINUTE = 60.0
MOST = 256
"""Sources and kinds that are told apart; what comes beyond is one line: a stranger has any number of addresses."""


@dataclass
class _Seen:
    said: float
    since: int = 0


class Strangers:
    """Counts; memory stays bounded whatever arrives.  Safe from several threads as far as a lost count does not matter."""

    def __init__(self, minute: float = MINUTE) -> None:
        self.total = 0
        self._minute = minute
        self._seen: dict[tuple[str, str], _Seen] = {}

    def line(self, now: float, source: str, what: str) -> str:
        """The line to log now, or "": it was said less than a minute ago.  ``now``: monotonic seconds."""
        self.total += 1
        key = (source, what[:200])
        seen = self._seen.get(key)
        if seen is None and len(self._seen) >= MOST:
            self._seen = {k: s for k, s in self._seen.items() if now - s.said < self._minute}
            if len(self._seen) >= MOST:
                key = ("many addresses", "more of the same, or other things")
                seen = self._seen.get(key)
        if seen is not None and now - seen.said < self._minute:
            seen.since += 1
            return ""
        more = f" ({seen.since} more since the last line)" if seen is not None and seen.since else ""
        self._seen[key] = _Seen(now)
        return f"{key[0]}: {key[1]}{more}"

    def say(self, log: logging.Logger, source: str, what: str) -> None:
        """Log it, when it is due."""
        if line := self.line(time.monotonic(), source, what):
            log.warning("%s", line)
