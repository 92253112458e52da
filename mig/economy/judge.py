"""One process, one target: what a move would gain, what it costs, and whether it pays, with the figures in words.

A process moves if the pool gains: ``saved > added * (1 + epsilon)``, both being differences of the price, and what that comes to over the
rest of its life is more than the move costs.  By what its age alone shows it must also be worth the time for which the helpers of the move
hold up the others at both ends.  What the process itself gains is a part of that and no test of its own: one of five on a fast machine with
four CPUs may go to an idle one that is a little slower for it, because the other four gain more.  With such a test, crowded fast machines
stayed crowded.

The time that a process will still run is not known; one that has used t seconds of CPU is expected to need t more (Harchol-Balter & Downey,
*Exploiting process lifetime distributions for dynamic load balancing*, ACM TOCS 15(3), 1997), and :data:`NEW_S` of which its age says
nothing.  Nor does a difference between two nodes last for ever (:mod:`mig.economy.gaps`): the gain is that of the shorter time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mig.economy.gaps import lasts
from mig.economy.price import NodeView, price_at, rate_at

LINE = 2.0
"""Process-seconds that a second of sending costs others: one for the line, for which another process may wait, one for the memory, which is
taken at both ends.  It shows on slow lines: without it some mixes of large jobs ended later at 100 Mbit/s than if nothing had moved."""
NEW_S = 4.0
"""CPU seconds that a job is expected to need of which nothing is known.  It is where shares by age begin to fall, too
(:data:`mig.economy.shares.YOUNG_S`)."""
DRAG_MAX = 0.9
"""No process is taken to lose more than this of its time to I/O that goes home."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The economy's part of :class:`mig.config.Config`; see there for each."""

    epsilon_home: float = 0.5
    epsilon_placed: float = 1.0
    freeze_s: float = 0.1
    setup_s: float = 0.5
    move_cpu_s: float = 0.3
    transfer_cpu: float = 0.1
    bandwidth: float = 125e6
    mem_reserve: int = 0
    stability: float = 1.30


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that could move: CPU seconds used, bytes in memory, mean number of runnable threads of its tree."""

    pid: int
    comm: str
    cpu_s: float
    rss: int
    threads: float = 1.0
    placed: bool = False  # its node was chosen at the start
    only: frozenset[str] = field(default_factory=frozenset)  # names of the nodes it may go to; empty: any
    busy: float = 1.0  # CPUs that it used over the last interval
    home: str = ""  # name of its home node
    drag: float = 0.0  # share of its time that it loses, or would lose, to I/O that goes home while it is elsewhere
    dirty: float = 1.0  # bytes that a move sends, for each byte of its memory

    @property
    def k(self) -> float:
        """Threads as they count in the price: a CPU-bound one is a whole one, even where it was caught starting."""
        return float(round(self.threads)) if self.threads >= 1.5 else 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a move pays, with all figures.

    ``gain``: process-seconds of the pool after all costs; ``sure``: the same, reckoned with as much rest as its age shows and no more;
    ``cost``: process-seconds that the move costs; ``send_s``: seconds of the transfer; ``saved``, ``added``: by how much the price falls
    here and rises there; ``held_up``: process-seconds that the helpers' work costs all processes of both nodes; ``r_here``, ``r_there``:
    standard CPU seconds a second that each of its threads gets; ``why_not``: "" when it pays, else what speaks against it: room | gain |
    price | helpers.
    """

    pays: bool
    gain: float
    cost: float
    send_s: float
    saved: float
    added: float
    r_here: float
    r_there: float
    epsilon: float
    why_not: str = ""
    held_up: float = 0.0
    sure: float = 0.0


def expected_rest(c: Candidate) -> float:
    """CPU seconds that each of its threads will probably still need: as many as it has used (Harchol-Balter & Downey), and
    :data:`NEW_S`."""
    return (c.cpu_s + NEW_S) / c.k


def drag_at(c: Candidate, node: str) -> float:
    """The share of its time that it loses to I/O on this node: none at home."""
    return 0.0 if not c.drag or node == c.home else min(c.drag, DRAG_MAX)


def judge(me: NodeView, target: NodeView, c: Candidate, knobs: Knobs, nodes: int, *, active: int = 0, lasted: float = math.inf) -> Verdict:
    """Test one pair; ``nodes`` is the size of the pool, ``active`` the number of transfers that share our line now, ``lasted`` the seconds
    for which the target has been better (infinite: let the difference last).

    ``P`` sums, over the processes of a node, the time that each needs for a unit of work.  One that waits for I/O from home gets less done
    in its share of the CPU, so it counts more where it is a guest: that is what draws it home.
    """
    k, mem = c.k, c.rss
    k_here = max(me.k, k)  # our smoothed load lags behind what we know: the process itself runs here
    r_here, r_there = rate_at(me, k_here, me.used), rate_at(target, target.k + k, target.used + mem)
    s = price_at(me, k_here, me.used, nodes) - price_at(me, k_here - k, max(0, me.used - mem), nodes)
    a = price_at(target, target.k + k, target.used + mem, nodes) - price_at(target, target.k, target.used, nodes)
    if c.drag:
        slow_here, slow_there = 1 - drag_at(c, me.name), 1 - drag_at(c, target.name)
        s += k * (1 / slow_here - 1) / r_here
        a += k * (1 / slow_there - 1) / r_there
        r_here, r_there = r_here * slow_here, r_there * slow_there
    send_s = mem * c.dirty / (knobs.bandwidth / (active + 1))
    cost = knobs.freeze_s + knobs.setup_s + (2 * knobs.transfer_cpu + LINE) * send_s
    most, sent = r_there * lasts(lasted), r_here * send_s  # work that it can do there while it is better there; work done meanwhile
    rest, shown = (max(0.0, min(x - sent, most)) for x in (expected_rest(c), c.cpu_s / k))
    gain = rest * (s - a) - cost
    held_up = hold_up(me, k_here, target, target.k + k, knobs)
    epsilon = knobs.epsilon_placed if c.placed else knobs.epsilon_home
    why_not = ""
    if target.total and target.used + mem + knobs.mem_reserve > target.total:
        why_not = "room"
    elif gain <= 0:
        why_not = "gain"
    elif s <= a * (1 + epsilon):
        why_not = "price"
    elif shown * (s - a) < held_up:
        why_not = "helpers"
    return Verdict(not why_not, gain, cost, send_s, s, a, r_here, r_there, epsilon, why_not, held_up, shown * (s - a) - cost)


def hold_up(me: NodeView, k_here: float, target: NodeView, k_there: float, knobs: Knobs) -> float:
    """Process-seconds by which the helpers of one move delay the threads of both nodes."""
    return knobs.move_cpu_s / 2 * (_crowd(me, k_here) + _crowd(target, k_there))


def _crowd(m: NodeView, k: float) -> float:
    """By how many seconds a second of the helpers' CPU time delays the ``k`` threads of a node, all together: each waits for its part of it
    where all CPUs are taken."""
    return k / m.cpus if k + 1 > m.cpus else 0.0
