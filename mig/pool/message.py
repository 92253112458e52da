"""What a datagram says, as plain objects.  ``wire`` gives it its form, and says what has room in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mig.model import NodeInfo

HELLO, NEWS, PING, ACK, ASK, NACK, REPAIR = range(1, 8)
"""Kinds.  HELLO wants an answer; PING, ACK, ASK (probe another one for me) and NACK (it did not answer me either) are probes; REPAIR
carries a digest; NEWS is everything else.  A kind that is unknown is read as NEWS: whatever rides on it is still good."""

ALIVE, SUSPECT, DEAD, LEFT, STALLED = range(5)
"""States of a node.  STALLED on the wire only: a suspect whose kernel answers.  Numbers are for ever."""
NAMES = ("alive", "suspect", "dead", "left", "suspect")

ACCEPTING = 1
"""Bit of ``Load.flags``; bits 1 and 2 are the pool state (0 unknown, 1 in, 2 leaving, 3 out), bits 3 to 7 the memory that nothing uses."""
UNUSED_SHIFT, UNUSED_STEPS = 3, 30
"""0 there: not told; n: (n - 1)/30 of the node's memory.  A picture needs no more, and no sample grows by it."""


class Load(NamedTuple):
    """The part of a node's entry that changes each second.  Pressures are PSI's avg10 in per cent, 255 where the kernel has none."""

    load: float = 0.0
    mem_free: int = 0
    guests: int = 0
    flags: int = ACCEPTING
    psi_cpu: int = 255
    psi_mem: int = 255


class Sample(NamedTuple):
    """A load as its node has told it, never changed on its way: whose, which one (16 bits, a serial number), and what."""

    id: int
    number: int
    load: Load


Group = tuple[int, list[Sample]]
"""Samples of one age, in tenths of a second at the moment of sending."""


class Rumor(NamedTuple):
    """Something that changed: ``id`` is ``state`` in its ``incarnation``, says ``by``."""

    id: int
    incarnation: int
    state: int
    by: int


class Digest(NamedTuple):
    """Sums over the members of buckets ``first``, ``first + 1``, ...; a member's bucket is its id modulo ``buckets``."""

    buckets: int
    first: int
    sums: tuple[int, ...]


@dataclass(slots=True)
class Message:
    """One datagram.  ``sender`` is the id under the seal."""

    kind: int
    sender: int = 0
    number: int = 0  # of a probe
    subject: int = 0  # whom to probe, or who did not answer
    urgent: bool = False  # pass on at once what is news to you
    rumors: list[Rumor] = field(default_factory=list)
    loads: list[Group] = field(default_factory=list)
    records: list[NodeInfo] = field(default_factory=list)
    wants: list[int] = field(default_factory=list)  # send me the records of these
    digest: Digest | None = None
