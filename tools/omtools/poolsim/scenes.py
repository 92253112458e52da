"""What happens to a simulated pool, and the figures taken: each scene is a function of size, timing and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mig.pool.pool import Changed, Timing

from .world import World

_SETTLE = 15.0
"""Seconds until the ages of a pool in which everybody knows everybody are what they stay."""
_VIEWERS = 100
"""Nodes whose tables are looked at for ages."""


@dataclass
class Figures:
    """Times in seconds until the last one knew; ages in seconds; bytes a second and node, as sent with all headers."""

    nodes: int
    join: list[float] = field(default_factory=list)
    leave: list[float] = field(default_factory=list)
    death: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    bytes_s: float = 0.0
    busiest: float = 0.0
    false_deaths: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By scene: nodes that lived and were declared dead by anybody, and (viewer, node) pairs of such."""
    healed: float = 0.0
    """After a cut, until all saw all; infinity if they did not for as long as they were watched."""


class Watch:
    """Notes who was declared dead and lived, and with ``times`` who learnt what and when."""

    def __init__(self, world: World, *, times: bool = False) -> None:
        self.world, self._note_times = world, times
        self.times: dict[tuple[int, str], dict[int, float]] = {}
        self.false: set[tuple[int, int]] = set()
        self.excused: Callable[[int, int], bool] = lambda viewer, node: False
        world.watch = self.note

    def note(self, viewer: int, c: Changed) -> None:
        """One change at one node."""
        if self._note_times:
            self.times.setdefault((c.node.id, c.state), {})[viewer] = self.world.now
        if c.state == "dead" and c.node.id not in self.world.dead and not self.excused(viewer, c.node.id):
            self.false.add((viewer, c.node.id))

    def last(self, node: int, state: str, since: float) -> float:
        """Seconds from ``since`` until the last living node knew; infinity if one never did."""
        times = self.times.get((node, state), {})
        others = [v for v in self.world.living() if v != node]
        return max((times[v] - since for v in others), default=0.0) if all(v in times for v in others) else float("inf")


def calm(f: Figures, timing: Timing, seed: int, *, seconds: float, deaths: int) -> None:
    """Ages and bytes at rest; then one after another a join by one seed, leaves and deaths."""
    w = World(f.nodes, timing, seed)
    w.acquaint()
    watch = Watch(w, times=True)
    w.run(_SETTLE)
    before = dict(w.sent)
    for _ in range(5):
        w.run(w.now + seconds / 5)
        f.ages += ages(w, max(1, min(f.nodes, _VIEWERS) // 5))
    each = [(w.sent[i] - before[i]) / seconds for i in before]
    f.bytes_s, f.busiest = sum(each) / len(each), max(each)
    if deaths and f.nodes < 65000:
        new, start = max(w.nodes) + 1, w.now
        w.add(new, seeds=[1])
        w.run(start + 12)
        f.join.append(watch.last(new, "alive", start))
        f.join.append(max(watch.times.get((i, "alive"), {}).get(new, float("inf")) - start for i in w.living() if i != new))
    for n in range(deaths):
        node, start = 2 + 2 * n, w.now
        w.kill(node)
        w.run(start + 3 + w.rng.random())
        w.run(start + 12 if timing.evidence else start + 60)
        f.death.append(watch.last(node, "dead", start))
        node, start = 3 + 2 * n, w.now
        w.leave(node)
        w.run(start + 5)
        f.leave.append(watch.last(node, "left", start))


def ages(w: World, viewers: int) -> list[float]:
    """True ages of the samples that some nodes hold; what a node never had counts as old as the world."""
    out = []
    for v in w.rng.sample(w.living(), viewers):
        p = w.nodes[v]
        for i in p.table.ids:
            s = p.table.samples[i]
            if i not in w.dead:
                out.append(w.now - (w.born[i].get(s.number, 0.0) if s else 0.0))
    return out


def lossy(f: Figures, timing: Timing, seed: int, loss: float, *, seconds: float = 60.0) -> None:
    """A share of all datagrams is lost for a minute."""
    w = World(f.nodes, timing, seed)
    w.acquaint()
    watch = Watch(w)
    w.run(5)
    w.network.loss = loss
    w.run(5 + seconds)
    _count(f, f"{loss:.0%} loss", watch)


def partitioned(f: Figures, timing: Timing, seed: int, *, seconds: float = 60.0, every: int = 2, watched: float = 90.0) -> None:
    """Two halves for a minute, or each ``every``-th node without the others; what counts is who is held for dead on his own side, or after
    it, and when all see all again, if they do within ``watched`` seconds."""
    w = World(f.nodes, timing, seed)
    w.acquaint()
    watch = Watch(w)
    w.run(5)
    side = {i: 1 for i in w.nodes if i % every == 1}
    watch.excused = lambda viewer, node: side.get(viewer) != side.get(node)
    w.network.side = side
    w.run(5 + seconds)
    w.network.side = {}
    start = w.now
    while w.now < start + watched and not _whole(w):
        w.run(w.now + 0.5)
    f.healed = w.now - start if _whole(w) else float("inf")
    _count(f, f"{seconds:.0f} s partition", watch)


def stalls(f: Figures, timing: Timing, seed: int, *, share: float = 0.05, length: float = 10.0, seconds: float = 60.0) -> None:
    """At any time a share of the nodes gets no CPU time for ``length`` seconds."""
    w = World(f.nodes, timing, seed)
    w.acquaint()
    watch = Watch(w)
    w.run(5)
    count = max(1, round(f.nodes * share))

    def begin(_: int) -> None:
        for i in w.rng.sample(w.living(), count):
            w.stall(i, length)
        if w.now + length < 5 + seconds:
            w.at(w.now + length + 0.001, begin)

    begin(0)
    w.run(5 + seconds + length)
    _count(f, f"{share:.0%} stalled for {length:.0f} s at a time", watch)


def _whole(w: World) -> bool:
    return all(len(p.table.up()) == len(w.living()) - 1 and not p.table.suspects for i, p in w.nodes.items() if i not in w.dead)


def _count(f: Figures, scene: str, watch: Watch) -> None:
    f.false_deaths[scene] = (len({node for _, node in watch.false}), len(watch.false))
