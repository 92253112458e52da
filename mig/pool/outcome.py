"""What the pool's machine tells its adapter to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mig.model import NodeInfo
from mig.pool.message import Message

GROUP = ("", 0)
"""Destination of a message to the multicast group."""


class Send(NamedTuple):
    """A message to send: to one address, or to :data:`GROUP`."""

    to: tuple[str, int]
    message: Message


class Changed(NamedTuple):
    """A node's state or boot changed.  ``node`` is its record, without what changes each second; ``before`` is "" if it was unknown."""

    node: NodeInfo
    state: str
    before: str
    rebooted: bool = False


class Knock(NamedTuple):
    """Try whether the kernel of this node takes a TCP connection, and tell :meth:`mig.pool.pool.Pool.knocked`."""

    node: int
    to: tuple[str, int]


@dataclass
class Outcome:
    """What to do after an input."""

    sends: list[Send] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    knocks: list[Knock] = field(default_factory=list)
