"""What the pool's daemons tell of the jobs: where each runs, and every move with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omtools.client import Client
from omtools.moslab import ready
from omtools.moslab.lab import Lab, Node

_BY_HAND = "user "
"""How the daemon begins the reason of a move that somebody ordered."""


@dataclass(frozen=True)
class Move:
    """A move that ended, well or not, as its home's daemon reports it."""

    pid: int
    source: str
    target: str
    outcome: str
    pause_ms: float
    total_ms: float
    size: int  # bytes sent
    reason: str
    error: str = ""

    @property
    def arrived(self) -> bool:
        """Whether the process now runs at the target."""
        return self.outcome == "arrived"

    @property
    def by_hand(self) -> bool:
        """Whether somebody ordered it; else the balancer did."""
        return self.reason.startswith(_BY_HAND)


class Pool:
    """The pool as the node ``home`` knows it, asked through its control socket."""

    def __init__(self, lab: Lab, home: Node) -> None:
        self._client = Client(ready.tree(lab, home) / ready.CONTROL)
        self._home = home.name
        self._seen: set[tuple[float, int]] = set()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def where(self) -> dict[int, str]:
        """By pid at home the node on which each process runs that has ever moved."""
        guests = self._client.call("guests", all=True)["guests"]
        return {int(g["pid"]): str(g["where"]) for g in guests if g["home"] == self._home}

    def new_moves(self) -> list[Move]:
        """Moves that have ended since the last call, the oldest first."""
        moves = []
        for event in self._client.call("events")["events"]:
            key = float(event["t"]), int(event.get("pid") or 0)
            if event["kind"] == "move" and key not in self._seen:
                self._seen.add(key)
                moves.append(_move(event))
        return moves


def _move(event: dict[str, Any]) -> Move:
    return Move(
        pid=int(event["pid"]),
        source=str(event.get("from", "")),
        target=str(event.get("to", "")),
        outcome=str(event.get("outcome", "")),
        pause_ms=float(event.get("pause_ms") or 0),
        total_ms=float(event.get("total_ms") or 0),
        size=int(event.get("bytes") or 0),
        reason=str(event.get("reason", "")),
        error="; ".join(str(e) for e in (event.get("error", ""), *event.get("reasons", ()))),
    )
