"""openMosix's switches of a node, and the speed that an administrator set: kept over a restart of omdiscd, not over a boot."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from dataclasses import dataclass

from mig import paths
from mig.model import Mapped

log = logging.getLogger(__name__)

WORDS = {
    "stay": "nothing leaves this node by itself",
    "lstay": "this node's own processes do not leave by themselves; guests may",
    "quiet": "this node tells no new load and decides nothing",
}
"""What each switch means when it is on."""


@dataclass
class Switches(Mapped):
    """``speed`` 0: as measured or configured."""

    stay: bool = False
    lstay: bool = False
    quiet: bool = False
    speed: float = 0.0

    @classmethod
    def load(cls) -> Switches:
        """As an earlier omdiscd of this boot left them."""
        f = paths.RUN / "switches.json"
        with contextlib.suppress(FileNotFoundError):
            try:
                return cls.from_map(json.loads(f.read_text()))
            except (ValueError, TypeError) as e:
                log.warning("%s is not readable, switches are as at the boot: %s", f, e)
        return cls()

    def save(self) -> None:
        """Keep them."""
        f = paths.RUN / "switches.json"
        temporary = f.with_suffix(".new")
        temporary.write_text(json.dumps(dataclasses.asdict(self)))
        os.replace(temporary, f)

    def on(self) -> list[str]:
        """Names of the switches that are on."""
        return [name for name in WORDS if getattr(self, name)]
