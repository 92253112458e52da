"""What a policy is: it suggests, and the manager (:mod:`mig.economy.manager`) prices, caps and enacts.

A policy is a class without arguments, named by an entry point of the group ``openmosix.policies``.  It opens nothing and reads no clock;
what it remembers between decisions it keeps itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mig.economy.judge import Candidate, Knobs, Verdict
from mig.economy.price import NodeView, added


@dataclass(slots=True)
class Situation:
    """What one node knows when it decides.

    ``me``: this node as it will be when the moves under way have ended; ``local``: its local load in threads, smoothed; ``others``: open
    nodes as gossip told of them, with what was sent there since; ``active``: transfers that share our line; ``nodes``: size of the pool;
    ``lasted``: seconds for which each of the others has been better, by id (:mod:`mig.economy.gaps`).
    """

    me: NodeView
    others: Sequence[NodeView]
    candidates: Sequence[Candidate] = ()
    knobs: Knobs = field(default_factory=Knobs)
    nodes: int = 0
    active: int = 0
    local: float = 0.0
    lasted: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = self.nodes or len(self.others) + 1

    def lasts(self, target: NodeView) -> float:
        """Seconds for which ``target`` has been better; infinite where nobody looked."""
        return self.lasted.get(target.id, math.inf)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Move ``candidate`` to ``target``.  ``kind``: load | memory | home.  ``verdict``: the figures, where the policy has made them."""

    candidate: Candidate
    target: NodeView
    kind: str = "load"
    verdict: Verdict | None = None


class Policy:
    """The base of all policies; as it stands it starts every job at home and moves nothing."""

    name = "none"
    asks = 3
    """Targets that are asked for their live state in one decision, and before a start; 0: gossip is believed."""
    priced = False
    """Whether a move must also pay by the price, judged with the target's live state."""

    def start(self, job: Candidate, s: Situation) -> Iterator[NodeView]:
        """Nodes for a job that has not begun, the best first, out of ``s.others`` and ``s.me``."""
        yield s.me

    def cost(self, job: Candidate, node: NodeView, s: Situation) -> float:
        """What the job costs on a node whose live state is ``node``: the manager takes the least of those that it asked."""
        return 0.0

    def suggest(self, s: Situation) -> Iterator[Suggestion]:
        """Moves, the most urgent first.  The manager stops asking when one was made, and asks anew with what is true then."""
        yield from ()


def cheapest(job: Candidate, nodes: Sequence[NodeView], count: int) -> list[NodeView]:
    """Nodes by what ``job`` adds to their price, those without room for it last; equal ones in the order given."""
    return sorted(nodes, key=lambda n: (not n.fits(job.rss), added(n, job.k, job.rss, count), -n.speed))
