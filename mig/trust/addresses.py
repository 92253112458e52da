"""Where each node of the pool is now: written by omdiscd, read by all processes of the node, as the table of certificates.

A file of its own, so that agents and keepers of an older version, which outlive an update, can still read that table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from mig import paths


class Addresses:
    """The table on disk: a node's id to its address."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or paths.TRUST / "addresses.json"
        self._stamp: tuple[int, int] | None = None
        self._table: dict[int, str] = {}

    def write(self, nodes: Iterable[tuple[int, str]]) -> None:
        """Replace the table by ``nodes``: id and address of each.  No-op when equal."""
        table = dict(nodes)
        if table == self._read():
            return
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(sorted(table.items())))
        os.replace(fresh, self.path)

    def of(self, node: int) -> str:
        """The address of the node with this id; "" when it is not known."""
        return self._read().get(node, "")

    def _read(self) -> dict[int, str]:
        try:
            st = self.path.stat()
        except FileNotFoundError:
            return {}
        stamp = (st.st_mtime_ns, st.st_ino)
        if stamp != self._stamp:
            self._table = {int(i): str(addr) for i, addr in json.loads(self.path.read_text())}
            self._stamp = stamp
        return self._table
