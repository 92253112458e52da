"""The intervals and limits of the gossip, in seconds and counts, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from mig.config import Config


@dataclass(frozen=True)
class Timing:
    """One pool's intervals; they need not be equal on all nodes."""

    # Steady interval of hellos to the group and to seeds that are not alive.  The group's is stretched in large pools, so that all nodes
    # together send about 4 in this time.
    hello_s: float = 5.0
    # Interval at which a node tells its load, and in which it sends `fanout` datagrams, evenly spread: an entry then makes several hops
    # in one interval.  Shorter: fresher loads, bytes grow with 1/interval.
    gossip_s: float = 1.0
    # Datagrams in each interval, each to one random node.  While the whole vector fits into one (about 90 nodes), one is enough, since a
    # probe and its answer carry it too; three as long as there is a rumour to tell.
    fanout: int = 10
    small_fanout: int = 3
    # Interval of probes and the patience for an answer (times Lifeguard's awareness, 1 to 9).  As memberlist: a LAN answers in 1 ms, but a
    # node whose CPU is taken may need half a second.
    probe_s: float = 1.0
    timeout_s: float = 0.5
    # A probe is sent so often while it is not answered, evenly over `probe_s`: one lost datagram must not accuse anybody.  In a pool of n
    # nodes n probes a second may fail, and each failure is told to all.  1: as SWIM.
    pings: int = 4
    # Of so many nodes that are due, the one with the oldest entry is probed: silence attracts probes.  1: plain round robin, as SWIM.
    choices: int = 4
    # Others asked to probe a node that did not answer us: its trouble may be the path between us.
    helpers: int = 3
    # How long a suspect node may show that it lives: `dead_s` when nobody else suspects it, down to `suspect_s` when others do too.
    suspect_s: float = 4.0
    dead_s: float = 8.0
    # The same for a node whose kernel still answers a TCP connection: its daemon is starved or stopped, the machine is not gone.
    stalled_s: float = 45.0
    # A rumour is sent retransmit x log10(nodes + 1) times by everybody who hears it.  As memberlist: beyond it, repair is cheaper.
    retransmit: int = 4
    # Interval of comparing digests with a random node.
    repair_s: float = 10.0
    # For so long after the start hellos go out each interval, so that a pool that is switched on at once finds itself.
    early_s: float = 5.0
    # A tick that comes later than this was our own absence: nobody is accused for it.
    slept_s: float = 2.0
    # For so long nobody is believed who was held for dead himself and tells of the death of a node that we did not ask in vain: the network
    # was cut between us, and each side has declared the other dead.  Longer than it takes a large pool to be whole again.
    returned_s: float = 60.0
    forget_s: float = 3600.0
    # Whether a fresh load entry, or any datagram of its own, clears a suspect: without it (plain SWIM) only its refutation does.
    evidence: bool = True
    # Whether one who has only heard of a suspicion judges when its time is over, as SWIM; if not, only those do who
    # asked in vain themselves.
    hearsay: bool = False
    # Whether a node that does not answer is knocked at by TCP before it is declared dead.
    knock: bool = True
    # Whether load entries are told at all, and whether death and leave are passed on at once instead of with the next gossip.
    loads: bool = True
    urgent: bool = True
    # For so long what comes after it is gathered: news that come one by one wait for nothing, a crowd of them shares datagrams.  Longer:
    # fewer datagrams when a cut network is whole again, later news then.
    gather_s: float = 0.05
    # memberlist lets the suspicion time grow with the pool: suspect_s x max(1, log10(nodes)).
    grows: bool = False

    @classmethod
    def of(cls, config: Config) -> Self:
        """As a node is configured.  Patience with an answer does not shrink below what a busy node needs."""
        probe = max(0.8, config.gossip_s)
        return cls(
            hello_s=config.hello_s, gossip_s=config.gossip_s, fanout=config.fanout, small_fanout=min(3, config.fanout),
            probe_s=probe, timeout_s=probe / 2, suspect_s=config.suspect_s, dead_s=config.dead_s,
            forget_s=config.forget_s,
        )  # fmt: skip

    def suspicion(self, nodes: int) -> tuple[float, float]:
        """Shortest and longest suspicion in a pool of ``nodes``."""
        scale = max(1.0, math.log10(max(1, nodes))) if self.grows else 1.0
        return self.suspect_s * scale, self.dead_s * scale

    def transmissions(self, nodes: int) -> int:
        """How often one node passes one rumour on."""
        return self.retransmit * math.ceil(math.log10(nodes + 1))


def memberlist() -> Timing:
    """The published defaults of hashicorp/memberlist (``DefaultLANConfig``): probe 1 s, timeout 500 ms, 3 indirect checks, suspicion
    multipliers 4 and 6, gossip every 200 ms to 3 nodes, retransmit 4, push-pull every 30 s.  It tells no loads."""
    return Timing(
        gossip_s=0.2, fanout=3, small_fanout=3, probe_s=1.0, timeout_s=0.5, pings=1, choices=1, helpers=3, suspect_s=4.0, dead_s=24.0,
        retransmit=4, repair_s=30.0, evidence=False, hearsay=True, knock=False, loads=False, urgent=False, grows=True,
    )  # fmt: skip
