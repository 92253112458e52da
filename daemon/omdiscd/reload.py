"""What omdiscd does at SIGHUP and ``mosctl reload``: read configuration and keys again, use what can be changed while it runs.

One :class:`Config` object is shared by all parts, which look its values up when they need them: the values of :data:`LIVE` are replaced in
it.  The others were used at the start (addresses, sockets, what this node is); they are named, and wait for a restart.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from mig.config import Config, load
from mig.errors import MigError
from mig.trust import keys
from omdiscd.seal import Seal

log = logging.getLogger(__name__)

LIVE = frozenset({
    "mem_total", "sample_s", "allow_uids", "allow_gids", "allow_root_guests", "allow_from", "remote_orders", "max_guests", "max_memory",
    "auto", "never", "balance_s", "min_age_s", "rest_s", "transfers", "move_timeout_s",
})  # fmt: skip
"""Keys whose value is looked up whenever it is needed."""


def changes(now: Config, fresh: Config) -> dict[str, tuple[Any, Any]]:
    """The keys that differ: value in use, value in the file."""
    names = [f.name for f in dataclasses.fields(Config)]
    return {n: (getattr(now, n), getattr(fresh, n)) for n in names if getattr(now, n) != getattr(fresh, n)}


class Reloader:
    """``file``: as given on the command line.  ``config`` is changed in place."""

    def __init__(self, file: Path | None, config: Config, seal: Seal, has_key: bool) -> None:
        self.file, self.config, self.seal, self.has_key = file, config, seal, has_key

    def reload(self) -> list[str]:
        """Do it; returns what to tell.  Raises :class:`MigError` for a file that is not valid, and then nothing has changed."""
        fresh, cluster = load(self.file), keys.load()
        said = []
        for name, (old, new) in changes(self.config, fresh).items():
            if name not in LIVE:
                said.append(f"{name} = {new!r}: when omdiscd is started again (now {old!r})")
            else:
                object.__setattr__(self.config, name, new)  # frozen against everybody else
                said.append(f"{name} = {new!r} (was {old!r})")
        said += self._keys(cluster)
        said = said or ["nothing has changed"]
        for line in said:
            log.info("reload: %s", line)
        return said

    def at_signal(self) -> None:
        """As :meth:`reload`, with what fails in the log."""
        try:
            self.reload()
        except MigError as e:
            log.error("not reloaded, everything stays as it was: %s", "; ".join(e.lines()))

    def _keys(self, cluster: list[bytes]) -> list[str]:
        if bool(cluster) != self.has_key:
            return ["the cluster key: when omdiscd is started again, as it decides whom it speaks with at all"]
        if not cluster or cluster == self.seal.keys:
            return []
        self.seal.change(cluster)
        first, *rest = (keys.name(k) for k in cluster)
        return [f"key {first} seals" + (f", accepted too: {', '.join(rest)}" if rest else "")]
