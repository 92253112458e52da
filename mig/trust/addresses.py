"""Where each node of the pool is now: written by omdiscd, read by all processes of the node, as the table of certificates.

A file of its own, so that agents and keepers of an older version, which outlive an update, can still read that table.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mig import paths
from mig.trust.shared import Shared


class Addresses:
    """The table on disk: a node's id to its address."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = Shared[dict[int, str]](path or paths.TRUST / "addresses.json", {}, lambda t: sorted(t.items()), _parse)

    def write(self, nodes: Iterable[tuple[int, str]]) -> None:
        """Replace the table by ``nodes``: id and address of each.  No-op when equal."""
        self._file.write(dict(nodes))

    def of(self, node: int) -> str:
        """The address of the node with this id; "" when it is not known."""
        return self._file.read().get(node, "")


def _parse(rows: list[tuple[Any, Any]]) -> dict[int, str]:
    return {int(i): str(addr) for i, addr in rows}
