"""How long a node that does not answer may still show that it lives.

Lifeguard (Dadgar, Phillips, Currey: *Lifeguard: Local Health Awareness for More Accurate Failure Detection*, DSN-W 2018): the first
suspicion runs for the longest time; each independent confirmation shortens it, the shortest is reached with ``EXPECTED`` of them.  In a
pool that is too small to give so many, the shortest holds at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EXPECTED = 2
"""Confirmations after which the suspicion is as short as it gets (memberlist: suspicion multiplier 4, less 2)."""


def duration(confirmations: int, nodes: int, shortest: float, longest: float) -> float:
    """Seconds of suspicion with so many confirmations by others, in a pool of ``nodes``."""
    expected = EXPECTED if nodes - 2 >= EXPECTED else 0
    if not expected:
        return shortest
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(shortest, longest - share * (longest - shortest))


@dataclass(slots=True)
class Suspicion:
    """One suspect node: since when, who suspects it, and when its time is over."""

    since: float
    deadline: float
    by: tuple[int, ...]
    own: bool = False  # we asked it in vain ourselves
    told: bool = False  # we were told that it is dead, before its time was over
    stalled: bool = False  # its kernel answers
